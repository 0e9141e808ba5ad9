PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow chaos lint bench bench-ig bench-train bench-scale bench-cost bench-precision bench-latency bench-views clean

demo: $(VENV)/.ready
	$(BIN)/python -m jobs.pipeline --preset demo --out out/demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -m "not slow"

slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

# The test of kills at random, at the length that says something: some 30 minutes.
chaos: $(VENV)/.ready
	CHAOS_RUNS=20 $(BIN)/python -m pytest tests/jobs/test_chaos.py

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: bench-ig bench-train bench-scale bench-cost bench-precision bench-latency bench-views

bench-ig: $(VENV)/.ready
	$(BIN)/python -m bench.attribution --ray 240

bench-train: $(VENV)/.ready
	$(BIN)/python -m bench.train

bench-scale: $(VENV)/.ready
	$(BIN)/python -m bench.scale

bench-cost: $(VENV)/.ready
	$(BIN)/python -m bench.cost

bench-precision: $(VENV)/.ready
	$(BIN)/python -m bench.precision

bench-latency: $(VENV)/.ready
	$(BIN)/python -m bench.latency

bench-views: $(VENV)/.ready
	$(BIN)/python -m bench.views

# Made again only when what it holds changes.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("igkd needs Python 3.11 or newer: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) out
