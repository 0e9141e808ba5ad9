""".ci/run, in a directory of its own with other steps."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "run"
# Like a Ray that a dead test run left: it holds the output open.
LEFT = "@sleep 600 & echo $$! >> pids"


@pytest.fixture(params=["by itself", "by make test"])
def clone(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the script, where a step may leave processes whose numbers it writes into `pids`; make marks what it starts."""
    for name, value in {"MAKELEVEL": "1", "MAKEFLAGS": "w"}.items():
        monkeypatch.delenv(name, raising=False)
        if request.param == "by make test":
            monkeypatch.setenv(name, value)
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci" / "run")
    yield tmp_path
    for pid in left(tmp_path):
        os.kill(pid, signal.SIGKILL)


def left(clone: Path) -> list[int]:
    """Which of them are alive."""
    pids = [int(line) for line in (clone / "pids").read_text().split()]
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def wait_until_gone(clone: Path) -> None:
    """A process that is killed lives on for a moment, on a busy machine a longer one."""
    for _ in range(100):
        if not left(clone):
            return
        time.sleep(0.1)
    raise AssertionError(f"still alive: {left(clone)}")


@pytest.mark.parametrize(("status", "steps"), [("true", 3), ("false", 1)])
def test_it_ends_with_its_steps_and_what_they_left(clone: Path, status: str, steps: int) -> None:
    (clone / "Makefile").write_text(f"lint test slow:\n\t{LEFT}\n\t@echo $@\n\t@{status}\n")
    # One of somebody else's with the clone's name in its command line, which a pattern of names would end.
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", f"{clone}/.venv/bin/python"])
    try:
        done = subprocess.run([str(clone / ".ci" / "run")], capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) == (status == "true")
        assert done.stdout.split() == ["lint", "test", "slow"][:steps]
        assert len((clone / "pids").read_text().split()) == steps
        wait_until_gone(clone)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_ends_what_it_started(clone: Path, kind: signal.Signals) -> None:
    (clone / "Makefile").write_text(f"lint test slow:\n\t{LEFT}\n\t@echo begun; sleep 600\n")
    run = subprocess.Popen([str(clone / ".ci" / "run")], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() == "begun\n"
    run.send_signal(kind)
    assert run.wait(30) == 128 + kind
    assert run.stdout.read() == ""  # nobody holds it open
    wait_until_gone(clone)
