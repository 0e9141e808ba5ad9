"""Sweeps whose runs, workers or driver fail, are killed or stopped: the same command ends with the same rows."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from igkd.base.errors import UserError
from igkd.base.run_directory import STATE
from igkd.sweeps.ledger import read_rows, read_status
from igkd.training.state import read_history
from jobs.backend.trials import persist
from tests.helpers.paths import IMAGES, ROOT
from tests.helpers.programs import Program
from tests.helpers.sweep_rows import lines, names
from tests.helpers.training import without_seconds


def arguments(store: str, out: Path, *more: str) -> list[str]:
    usual = ["--test-images", IMAGES, "--arms", "student", "kd+ig", "--seeds", "0", "1", "--epochs", "6"]
    return ["--store", store, "--out", str(out), *usual, *more]


def test_a_run_killed_for_memory_does_not_end_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    """Tune raises what it does then: a RuntimeError from Ray's OutOfMemoryError."""
    calls: list[int] = []

    def attempt() -> None:
        calls.append(len(calls))
        if len(calls) < fails_until:
            raise RuntimeError("Caught unexpected exception") from ray.exceptions.OutOfMemoryError("killed")

    fails_until = 3
    persist(attempt)
    assert len(calls) == 3 and capsys.readouterr().out.count("too little memory") == 2
    calls.clear()
    fails_until = 9
    with pytest.raises(UserError, match="too little memory for so many runs"):
        persist(attempt)
    assert len(calls) == 3

    def other() -> None:
        calls.append(0)
        raise RuntimeError("something else")

    calls.clear()
    with pytest.raises(RuntimeError, match="something else"):
        persist(other)
    assert len(calls) == 1


def kill_all(process: "subprocess.Popen[str]") -> None:
    """SIGKILL for a driver and everything that it started."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def wait_until(true: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    for _ in range(2400):
        if true():
            return
        assert process.poll() is None, "it ended too early"
        time.sleep(0.05)
    raise AssertionError("it never came")


def start(options: list[str]) -> "subprocess.Popen[str]":
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "jobs.ablate", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.slow
def test_kill_9_in_the_middle_and_the_same_command_ends_with_the_same_rows(
    cluster: None, run_job: Program, toy_store: str, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert run_job("ablate", *arguments(toy_store, whole)).returncode == 0
    students = out / "students"
    for moment in (lambda: bool(list(students.glob(f"*/{STATE}"))), lambda: len(list(students.glob("*/result.json"))) >= 1):
        first = start(arguments(toy_store, out))
        wait_until(moment, first)
        kill_all(first)
    kept = {path.parent.name: len(read_history(path.parent)) for path in students.glob(f"*/{STATE}")}
    finished = names(out)
    assert run_job("ablate", *arguments(toy_store, out)).returncode == 0
    assert finished or kept
    assert names(out) == lines(out) == sorted(f"{arm}-mobilenet-cut-5-seed{seed}" for arm in ("student", "kd+ig") for seed in (0, 1))
    rows = {row["cell"]: row for row in read_rows(whole)}
    for row in read_rows(out):
        # Not only the same set: the same networks, since every choice is a function of seed, epoch and image.
        assert without_seconds(row["history"]) == without_seconds(rows[row["cell"]]["history"])
        assert row["test"] == rows[row["cell"]]["test"]


@pytest.mark.slow
def test_ctrl_c_stops_with_a_status_and_goes_on(toy_store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(arguments(toy_store, out, "--epochs", "40"))
    wait_until(lambda: bool(list((out / "students").glob(f"*/{STATE}"))), first)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=90)
    assert first.returncode == 130 and "the same command continues" in said, said
    assert read_status(out).phase == "stopped"


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_goes_on_from_its_last_epoch(toy_store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = start(arguments(toy_store, out, "--seeds", "0", "--epochs", "12"))
    state = out / "students" / "kd+ig-mobilenet-cut-5-seed0" / STATE
    wait_until(lambda: state.exists() and len(read_history(state.parent)) >= 2, job)
    for one in psutil.Process(job.pid).children(recursive=True):
        if "train_cell" in " ".join(one.cmdline()) or "ImplicitFunc" in " ".join(one.cmdline()):
            one.kill()
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 0, said
    assert "failed and is tried again" in said
    assert all([entry["epoch"] for entry in row["history"]] == list(range(1, 13)) for row in read_rows(out)) and len(read_rows(out)) == 2


@pytest.mark.slow
def test_what_fails_is_listed_first_and_the_rest_is_done(cluster: None, run_job: Program, toy_store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    short = ["--seeds", "0", "--epochs", "1"]
    assert run_job("ablate", *arguments(toy_store, out, *short, "--arms", "student")).returncode == 0
    broken = out / "students" / "kd+ig-mobilenet-cut-5-seed0"
    config = json.loads((out / "students" / "student-mobilenet-cut-5-seed0" / "config.json").read_text()) | {"arm": "kd+ig"}
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps(config))
    (broken / STATE).write_bytes(b"no state")
    job = run_job("ablate", *arguments(toy_store, out, *short, "--arms", "kd+ig", "kd"))
    assert job.returncode == 1, job.stderr
    failure = read_status(out).failures["kd+ig-mobilenet-cut-5-seed0"]
    assert failure["tries"] == 1 and "delete it to begin that run anew" in failure["error"]
    assert names(out) == ["kd-mobilenet-cut-5-seed0", "student-mobilenet-cut-5-seed0"]
    page = (out / "report.html").read_text()
    assert page.index("delete it to begin that run anew") < page.index("Accuracy by arm")
    (broken / STATE).unlink()
    again = run_job("ablate", *arguments(toy_store, out, *short, "--arms", "kd+ig", "kd"))
    assert again.returncode == 0 and "kd+ig-mobilenet-cut-5-seed0" in names(out) and not read_status(out).failures


@pytest.mark.slow
def test_a_deadline_stops_cleanly_and_reports(run_job: Program, toy_store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_job(
        "tune", "--store", toy_store, "--out", str(out), "--recipe", "paper", "--epochs", "60", "--trials", "50", "--hours", "0.01"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_status(out).phase == "stopped" and (out / "report.html").exists()
    begun = [path.parent for path in (out / "students").glob("*/config.json") if not (path.parent / "result.json").exists()]
    assert begun and not any(row["cell"] in {path.name for path in begun} for row in read_rows(out))  # stopped, not pruned
    left = {path.name for path in begun}
    more = run_job(
        "tune", "--store", toy_store, "--out", str(out), "--recipe", "paper", "--epochs", "60",
        "--trials", str(len(read_rows(out)) + len(left)),
    )  # fmt: skip
    assert more.returncode == 0, more.stderr[-2000:]
    assert left <= set(names(out))  # what was begun is finished, not something else begun
