"""The examples run, and do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from igkd.deployment import formats
from igkd.images.codec import Scaling, decode
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build
from igkd.store import Store
from tests.helpers.networks import settled
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


PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "jobs.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("scaling", [Scaling(), Scaling(40, "bilinear"), Scaling(32, "nearest")], ids=str)
@pytest.mark.parametrize("block", PROGRAMS, ids=["onnx", "torch"])
def test_a_student_answers_in_a_program_as_the_guide_says(block: str, scaling: Scaling, tmp_path: Path) -> None:
    """A picture of another shape, with transparency, that lies on its side."""
    spec = NetworkSpec(
        classes=tuple("abcdefghij"), image_shape=(24, 32), name="lean:2:8x1,16x1", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25),
        short_side=scaling.short_side, interpolation=scaling.interpolation,
    )  # fmt: skip
    student = settled(build(spec, 0))
    checkpoint.save(student, tmp_path / "out" / "student", {})
    (tmp_path / "out" / "student.onnx").write_bytes(formats.with_metadata(formats.to_onnx(student), formats.describe(spec, {})))
    values = np.random.default_rng(0).integers(0, 256, (7, 10, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.fromarray(values).resize((300, 210)).save(tmp_path / "picture.png", exif=turned)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels = torch.tensor(decode((tmp_path / "picture.png").read_bytes(), spec.image_shape, scaling)).permute(2, 0, 1)[None]
    assert done.stdout == f"{spec.classes[student.eval()(pixels.float() / 255).argmax()]}\n"
