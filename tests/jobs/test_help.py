"""What a user meets first: help and one-sentence errors, of the real programs."""

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
slow = functools.partial(pytest.param, marks=pytest.mark.slow)  # each of these programs starts for seconds


@pytest.mark.parametrize(
    ("job", "flags"),
    [
        ("teacher", ["--images", "--out", "--epochs", "--workers", "--seed"]),
        ("precompute", ["--images", "--split", "--teacher", "--store", "--limit", "--steps", "--bad-images"]),
        ("distill", ["--store", "--test-images", "--arm", "--student", "--seed", "--epochs", "--out", "kd+ig+at", "--bad-images"]),
        ("pipeline", ["--preset", "demo", "cifar10", "--out", "--arms", "--seeds", "--bad-images"]),
        ("ablate", ["--store", "--grids", "monte-carlo", "--until", "--dry-run", "--runs-per-gpu", "--bad-images"]),
        ("tune", ["--store", "--trials", "--until", "--hours", "--recipe"]),
        ("search", ["--store", "--teacher", "--budget", "--candidates", "--trials", "--until", "--recipe"]),
    ],
)
def test_help_names_the_flags(run_job: Run, job: str, flags: list[str]) -> None:
    done = run_job(job, "--help")
    assert done.returncode == 0
    for flag in flags:
        assert flag in done.stdout
    assert f"python -m jobs.{job}" in done.stdout


@pytest.mark.parametrize(
    ("job", "args", "words"),
    [
        ("teacher", ["--images", "folder:/nowhere/at/all", "--out", "OUT"], ["/nowhere/at/all", "no such directory"]),
        slow("teacher", ["--images", "shapes", "--out", "/proc/igkd"], ["cannot write /proc/igkd"]),
        slow("precompute", ["--images", "shapes", "--teacher", "OUT", "--store", "OUT"], ["no checkpoint", "jobs.teacher"]),
        slow("distill", ["--store", "OUT/none", "--test-images", "shapes", "--out", "OUT"], ["no attribution store", "jobs.precompute"]),
        slow("distill", ["--store", "OUT", "--test-images", "shapes", "--arm", "magic", "--out", "OUT"], ["magic"]),
        ("ablate", ["--store", "OUT/none", "--out", "OUT/new", "--arms", "magic"], ["magic", "kd+ig+at"]),
        slow("tune", ["--store", "OUT/none", "--out", "OUT/new", "--until", "25:00"], ["--until 25:00 is no time", "07:00"]),
        slow("tune", ["--store", "OUT/none", "--out", "OUT/new", "--trials", "0"], ["--trials must be at least 1"]),
        slow("search", ["--store", "OUT/none", "--teacher", "OUT/none", "--out", "OUT/new", "--budget", "0"], ["--budget above 0"]),
        ("pipeline", ["--preset", "demo", "--images", "nonsense", "--out", "OUT"], ["nonsense", "folder:PATH"]),
    ],
)
def test_bad_input_is_one_sentence_and_a_status(run_job: Run, tmp_path: Path, job: str, args: list[str], words: list[str]) -> None:
    done = run_job(job, *(arg.replace("OUT", str(tmp_path)) for arg in args))
    assert done.returncode not in (0, 130)
    assert "Traceback" not in done.stderr
    said = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    for word in words:
        assert word in said
