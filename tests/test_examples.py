"""The examples run, and do what they say."""

import subprocess
import sys
from pathlib import Path

from igkd.networks import checkpoint
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
