"""The examples run, and do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from igkd.networks import checkpoint
from igkd.store import Store
from tests.helpers.paths import ROOT


def test_a_student_is_distilled_without_ray(finished: str, tmp_path: Path) -> None:
    program = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__'); assert 'ray' not in sys.modules"
    arguments = [str(ROOT / "examples" / "distil_without_ray.py"), finished, "--student", "lean:4:8x1,16x1", "--epochs", "3"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *epochs, last = done.stdout.splitlines()
    assert first == "lean:4:8x1,16x1, 6,226 parameters, learns from 24 images of mobilenet:width=0.35"
    assert [line.partition(":")[0] for line in epochs] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"] and last == f"student: {tmp_path}"
    assert checkpoint.load(tmp_path).spec.name == "lean:4:8x1,16x1"


BLOCKS = re.findall(r"## ([^\n]+)\n(?:(?!## ).)*?```python\n(.*?)```", (ROOT / "docs" / "store.md").read_text(), re.DOTALL)


def run_block(block: str, store: str) -> str:
    """What a block of docs/store.md prints of this store."""
    done = subprocess.run([sys.executable, "-c", block.replace("out/store", store)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_a_store_is_read_as_the_guide_says(name: str, block: str, finished: str) -> None:
    opened = Store.open(finished)
    labels, errors = opened.column("label"), np.abs(opened.column("ig_delta"))
    said = run_block(block, finished)
    if name.endswith("PyTorch"):
        assert "[24, 3, 32, 32]) torch.Size([24]) torch.Size([24, 10]) torch.Size([24, 32, 32])" in said
    elif name == "Ray Data":
        assert float(said.split()[-1]) == pytest.approx(float(opened.column("ig").sum()), rel=1e-4)
    elif name == "pandas":
        found = dict(line.split() for line in said.splitlines() if len(line.split()) == 2 and line[0].isdigit())
        assert {int(label): float(error) for label, error in found.items()} == pytest.approx(
            {label: float(errors[labels == label].mean()) for label in np.unique(labels).tolist()}, rel=1e-3
        )
    elif name == "DuckDB":
        rows = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in said.splitlines() if line.count("\u2502") == 4]
        counts = {int(label): int(images) for label, images, _ in rows if label.isdigit()}
        assert counts == {label: int((labels == label).sum()) for label in np.unique(labels).tolist()}
    else:
        assert name == "Hugging Face datasets" and "(32, 32)" in said and "'logits'" in said


def test_the_guide_has_all_five() -> None:
    assert len(BLOCKS) == 5
