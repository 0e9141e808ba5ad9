PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes, each of which takes whole files, in the order of their names: while one waits for Ray, the other computes.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: demo test slow chaos lint bench bench-ig bench-train bench-scale bench-cost bench-precision bench-latency bench-views bench-large bench-networks clean help

demo: $(VENV)/.ready  ## run the whole pipeline on built-in pictures; ends with the path of the report
	$(BIN)/igkd pipeline --preset demo --out out/demo

test: $(VENV)/.ready  ## all tests except the slow ones
	$(PYTEST) -m "not slow" tests

slow: $(VENV)/.ready  ## the tests that kill processes, and other slow ones
	$(PYTEST) -m slow tests

# The test of kills at random, at the length that says something: some 30 minutes.
chaos: $(VENV)/.ready  ## the test of kills at random, 20 runs (some 30 minutes)
	CHAOS_RUNS=20 $(BIN)/python -m pytest tests/jobs/test_chaos.py

lint: $(VENV)/.ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: bench-ig bench-train bench-scale bench-cost bench-precision bench-latency bench-views bench-large bench-networks  ## all benchmarks

bench-ig: $(VENV)/.ready  ## speed of attribution maps, against Captum
	$(BIN)/python -m bench.attribution --ray 240
	$(BIN)/python -m bench.attribution --teacher homogeneous:1:24x2,48x2,96x2 --batch 64

bench-train: $(VENV)/.ready  ## speed of a training step, against the published loop
	$(BIN)/python -m bench.train

bench-scale: $(VENV)/.ready  ## the store at up to a million rows
	$(BIN)/python -m bench.scale

bench-cost: $(VENV)/.ready  ## time and memory of a map, by network and image size
	$(BIN)/python -m bench.cost

bench-precision: $(VENV)/.ready  ## what float16 and uint8 do to maps
	$(BIN)/python -m bench.precision

bench-latency: $(VENV)/.ready  ## latency of teacher, cut and lean students
	$(BIN)/python -m bench.latency

bench-views: $(VENV)/.ready  ## time and size of the teacher's logits of crops
	$(BIN)/python -m bench.views

bench-large: $(VENV)/.ready  ## reading, attribution and training at 224 pixels, and which waits
	$(BIN)/python -m bench.large

bench-networks: $(VENV)/.ready  ## maps of sixteen networks of many kinds, against Captum
	$(BIN)/python -m bench.networks

# Made again only when what it holds changes.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("igkd needs Python 3.11 or newer: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

clean:  ## delete the virtual environment and out/
	rm -rf $(VENV) out

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name words; do printf '%-16s %s\n' "$$name" "$$words"; done
