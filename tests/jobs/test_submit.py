"""The same commands as jobs of a cluster: `ray job submit` to a real head on this machine."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from igkd.store import Store, verify
from tests.conftest import free_port, wait_for_port
from tests.jobs.conftest import IMAGES, ROOT

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
    toy = ["--images", IMAGES, "--teacher-epochs", "1", "--limit", "60", "--steps", "4", "--epochs", "1", "--arms", "kd+ig"]
    done = submit("jobs.pipeline", "--preset", "demo", "--out", str(tmp_path / "out"), *toy)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"report: {tmp_path}/out/report.html" in done.stdout
    assert verify(str(tmp_path / "out" / "store")) == [] and len(Store.open(str(tmp_path / "out" / "store")).column("image_id")) == 60


@pytest.mark.slow
def test_an_error_of_a_job_is_its_exit_status(submit: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = submit("jobs.precompute", "--images", "folder:/nowhere", "--teacher", str(tmp_path), "--store", str(tmp_path / "store"))
    assert done.returncode != 0
    assert "folder:/nowhere: there is no such directory" in done.stdout + done.stderr
