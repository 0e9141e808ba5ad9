"""What stands in the way of Ray's start is one sentence that names what to set right."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import ray

from igkd.base.errors import UserError
from jobs.backend import start
from jobs.backend.start import awaited
from tests.helpers.paths import ROOT

PROGRAM = "from jobs.backend.runtime import run_job, start_ray; run_job(start_ray)"
ALONE = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that takes connections and never says anything."""
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen(50)
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("/tmp/" + 60 * "x", "is too long: .* sockets .*107 bytes; set RAY_TMPDIR to a directory of at most 4. bytes"),
        ("/tmp/" + 20 * "é", "is too long"),  # of two bytes each
        ("relative", "is not an absolute path"),
        ("", "is not an absolute path"),
        ("/proc/x", "cannot keep its files in .*_?TMPDIR=/proc/x: No such file"),
        ("/etc/passwd", "Not a directory"),
    ],
)
def test_a_directory_that_ray_cannot_use_is_refused(variable: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=sentence) as caught:
        start.check_temporary_directory()
    assert str(caught.value).count(f"{variable}=") == 1 and "\n" not in str(caught.value)


def test_a_directory_as_long_as_the_sentence_allows_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + 60 * "x")
    with pytest.raises(UserError) as caught:
        start.check_temporary_directory()
    longest = int(str(caught.value).split("at most ")[1].split()[0])
    for extra, fits in ((0, True), (1, False)):
        link = Path("/tmp") / f"igkd{os.getpid()}".ljust(longest + extra - len("/tmp/"), "x")
        link.symlink_to(tmp_path)
        monkeypatch.setenv("RAY_TMPDIR", str(link))
        try:
            if fits:
                start.check_temporary_directory()
            else:
                with pytest.raises(UserError, match="too long"):
                    start.check_temporary_directory()
        finally:
            link.unlink()


def test_a_full_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(start, "LEAST_FREE", 1 << 60)  # more than any disk has
    monkeypatch.setattr(start, "LEAST_OBJECTS", 0)
    with pytest.raises(UserError, match="RAY_TMPDIR=/tmp has no space for Ray's files: .* MiB are left"):
        start.check_temporary_directory()


@pytest.mark.parametrize(
    ("home", "sentence"),
    [("/proc", "HOME=/proc: No such file"), ("/etc/passwd", "HOME=/etc/passwd: Not a directory"), ("a", "absolute"), ("", "absolute")],
)
def test_a_home_that_cannot_hold_the_token_is_refused(home: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UserError, match=sentence):
        start.check_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")  # then Ray needs no file
    start.check_token()


def test_a_home_without_a_token_is_taken_and_so_is_a_read_only_one_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path / "new"))
    start.check_token()
    (tmp_path / "new" / ".ray" / "auth_token").write_text("secret")
    (tmp_path / "new" / ".ray").chmod(0o500)
    start.check_token()


@pytest.mark.parametrize(
    "address",
    ["nonsense", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:99999", "127.0.0.1:x", "a b:1", "http://127.0.0.1:8265", "ray://127.0.0.1:1", "ray://",
     "[::1]:1", "nosuchhost.invalid:6379"],
)  # fmt: skip
def test_an_address_of_no_cluster_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="RAY_ADDRESS=.* names no Ray cluster") as caught:
        start.check_address(address)
    assert address in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_is_no_ray_or_says_nothing_is_refused(mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "REACH_S", 0.5)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={mute}.*does not answer"):
        start.check_address(mute)


def test_the_address_of_a_ray_is_taken(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    address = ray.get_runtime_context().gcs_address
    start.check_address(address)
    host, _, port = address.rpartition(":")
    start.check_address(f"{socket.gethostname()}:{port}" if host != "127.0.0.1" else address)


def test_a_job_that_waits_for_a_cluster_honours_sigterm(mute: str) -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", "print('begins', flush=True);" + PROGRAM], cwd=ROOT, env=ALONE | {"RAY_ADDRESS": mute},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert job.stdout is not None and job.stdout.readline() == "begins\n"
    time.sleep(1)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) in (130, -signal.SIGTERM)  # the latter while it still imports
    job.stdout.close()


@pytest.mark.parametrize("change", [{"TMPDIR": "/tmp/" + 60 * "x"}, {"HOME": "/proc"}, {"RAY_ADDRESS": "127.0.0.1:1"}])
def test_a_job_says_it_in_one_line(change: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=ALONE | change, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and next(iter(change)) in done.stderr


def test_whatever_ray_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**settings: object) -> None:
        raise RuntimeError("The node timed out.\nSee the log")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(UserError, match=r"Ray cannot start on this machine \(The node timed out\); .*RAY_TMPDIR"):
        start.connect(None, {})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_another_thread_gets_ends_the_main_threads_wait(number: signal.Signals) -> None:
    """Linux may hand a process's signal to any of its threads; here it does."""
    program = f"""
import signal, threading, time
from concurrent.futures import Future
from jobs.backend.start import awaited

def send():
    time.sleep(1)
    signal.pthread_kill(threading.get_ident(), {int(number)})

threading.Thread(target=send).start()
try:
    awaited(Future())
except KeyboardInterrupt:
    print("ended")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "ended\n"


def test_waiting_has_an_end() -> None:
    with pytest.raises(TimeoutError):
        awaited(Future(), seconds=0.1)


MISTAKEN = """
import time
from igkd.base.errors import UserError
from jobs.backend.runtime import begin_ray, run_job

def main():
    begin_ray("nowhere")
    time.sleep({})
    raise UserError("a network that cannot be")

run_job(main)
"""


@pytest.mark.parametrize("seconds", [0, 1, 2.5])
def test_an_error_while_ray_starts_leaves_nothing_of_it(seconds: float) -> None:
    """A job begins to start Ray before it has looked at everything."""
    environment = ALONE | {"RAY_TMPDIR": (directory := f"/tmp/ig{os.getpid()}")}
    command = [sys.executable, "-c", MISTAKEN.format(seconds)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: a network that cannot be\n")
        until = time.monotonic() + 30
        while (left := processes_with(directory)) and time.monotonic() < until:
            time.sleep(0.2)
        assert not left
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def processes_with(text: str) -> list[str]:
    """The command lines of the processes that were started with a text in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
    return found
