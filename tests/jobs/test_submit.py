"""The same commands as jobs of a cluster: `ray job submit` to a real head on this machine."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from igkd.base.run_directory import STATE
from igkd.store import Store, verify
from igkd.training.state import read_history
from tests.helpers.paths import IMAGES, ROOT
from tests.helpers.servers import free_port, wait_for_port

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For the head and who submits to it: token authentication with a token of their own, whatever is in the user's home."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(secrets.token_hex(32))
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


@pytest.fixture(scope="module")
def head(environment: dict[str, str]) -> Iterator[str]:
    """The address of a head's job server, on loopback."""
    dashboard, temporary = free_port(), tempfile.mkdtemp(prefix="igkd")  # Ray's socket names must be short
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}", f"--temp-dir={temporary}"]
    # Jobs are started by the node's agent, whose own port, if it were the usual one, the Ray of another test would hold.
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    command += ["--disable-usage-stats"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=temporary, env=environment)
    try:
        wait_for_port(process, dashboard)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def submit(head: str, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), "job", "submit", "--address", head, "--working-dir", ".", "--", "python", "-m", *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=environment)

    return run


@pytest.mark.slow
def test_the_pipeline_runs_as_a_job(submit: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    toy = ["--images", IMAGES, "--teacher-epochs", "1", "--limit", "60", "--steps", "4", "--epochs", "1", "--arms", "kd+ig", "--seeds", "0"]
    done = submit("jobs.pipeline", "--preset", "demo", "--out", str(tmp_path / "out"), *toy)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"report: {tmp_path}/out/report.html" in done.stdout
    assert verify(str(tmp_path / "out" / "store")) == [] and len(Store.open(str(tmp_path / "out" / "store")).column("image_id")) == 60


@pytest.mark.slow
def test_an_error_of_a_job_is_its_exit_status(submit: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = submit("jobs.precompute", "--images", "folder:/nowhere", "--teacher", str(tmp_path), "--store", str(tmp_path / "store"))
    assert done.returncode != 0
    assert "folder:/nowhere: there is no such directory" in done.stdout + done.stderr


def one_line(head: str, environment: dict[str, str], *args: str, stdout: Any = subprocess.PIPE) -> "subprocess.Popen[str]":
    """`cluster/submit ARGS`, from elsewhere."""
    return subprocess.Popen(
        [str(ROOT / "cluster" / "submit"), *args],
        cwd="/", env=environment | {"RAY_API_SERVER_ADDRESS": head}, stdout=stdout, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_one_short_line_uploads_little_streams_and_carries_the_status(head: str, environment: dict[str, str], tmp_path: Path) -> None:
    job = one_line(head, environment, "precompute", "--images", "folder:/nowhere", "--teacher", str(tmp_path), "--store", str(tmp_path))
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 1 and "folder:/nowhere: there is no such directory" in said, said
    size = re.search(r"submit: (\d+) KiB", said)
    tracked = subprocess.run(["git", "ls-files", "igkd", "jobs", "cluster", "assets"], cwd=ROOT, capture_output=True, text=True, check=True)
    most = sum((ROOT / name).stat().st_size for name in tracked.stdout.splitlines())
    assert size and 100 < int(size[1]) < most / 1024 + 100  # the teachers of assets/ are most of it
    # Through jobs.nodes, which asks for what there is.
    nodes = one_line(head, environment, "nodes", "--cpus", "1", "--", "python", "-m", "jobs.precompute", "--images", "folder:/nowhere",
                     "--teacher", str(tmp_path), "--store", str(tmp_path))  # fmt: skip
    said, _ = nodes.communicate(timeout=300)
    assert nodes.returncode == 1 and "folder:/nowhere: there is no such directory" in said, said
    unknown = one_line(head, environment, "magic")
    said, _ = unknown.communicate(timeout=60)
    assert unknown.returncode == 2 and "'magic' is no job; there are ablate, distill" in said


@pytest.mark.slow
def test_a_job_that_is_stopped_goes_on_where_it_was(head: str, environment: dict[str, str], tmp_path: Path, toy_store: str) -> None:
    """By Ctrl-C in the terminal that streams its log, and by `ray job stop` from anywhere."""
    out = tmp_path / "out"
    grid = ["ablate", "--store", toy_store, "--out", str(out), "--arms", "student", "--seeds", "0", "--epochs", "5000"]
    state = out / "students" / "student-mobilenet-cut-5-seed0" / STATE

    def begun(epochs: int) -> "subprocess.Popen[str]":
        """The job, when it has done so many epochs; its output is in a file, in which its id can be looked up while it runs."""
        with (tmp_path / "log").open("w") as log:
            job = one_line(head, environment, *grid, stdout=log)
        for _ in range(8000):  # a start takes a minute or two where other tests run, too
            if state.exists() and len(read_history(state.parent)) >= epochs:
                return job
            assert job.poll() is None, said()
            time.sleep(0.05)
        raise AssertionError(f"it did not reach epoch {epochs}: {said()}")

    def said() -> str:
        return (tmp_path / "log").read_text()[-4000:]

    job = begun(2)
    job.send_signal(signal.SIGINT)
    assert job.wait(120) == 130, said()
    job = begun(len(read_history(state.parent)) + 2)
    name = re.search(r"Job '(igkd-ablate-[^']+)' submitted", said())
    assert name, said()
    subprocess.run([str(BIN / "ray"), "job", "stop", "--address", head, name[1]], env=environment, check=True, timeout=120)
    assert job.wait(120) == 143, said()
    done = len(read_history(state.parent))
    job = begun(done + 2)
    job.send_signal(signal.SIGINT)
    assert job.wait(120) == 130, said()
    history = read_history(state.parent)
    assert [entry["epoch"] for entry in history] == list(range(1, len(history) + 1)) and len(history) >= done + 2
