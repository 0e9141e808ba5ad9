"""One job at a time: leases of real processes, on disk and on S3."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from igkd import store
from igkd.base.errors import UserError
from igkd.base.storage import filesystem, read_file, write_file
from igkd.store import hold, lease
from tests.helpers.paths import ROOT
from tests.helpers.stores import tiny_plan, write_all

HOLDER = """
import sys
from igkd.base.errors import run_cli
from igkd.store import lease
lease.BEAT_S, lease.SETTLE_S = 0.02, float(sys.argv[2])
def main():
    with lease.hold(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
run_cli(main)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching takes three seconds, in which a holder of `HOLDER` beats 150 times; this process' own beats are fast where it matters."""
    monkeypatch.setattr(lease, "BEAT_S", 1.0)
    monkeypatch.setattr(lease, "SETTLE_S", 0.01)


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return f"s3://igkd/{tmp_path.name}"


@pytest.fixture
def holder() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start another process that holds a store until its standard input ends; give it when it has said so."""
    started: list[subprocess.Popen[str]] = []

    def start(uri: str, settle: float = 0.01, wait: bool = True) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", HOLDER, uri, str(settle)], cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
        started.append(process)
        assert not wait or process.stdout.readline() == "held\n", process.communicate()[1]
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def content(uri: str) -> dict[str, Any] | None:
    """The lease in a store, None if there is none."""
    fs, root = filesystem(uri)
    try:
        return dict(json.loads(read_file(fs, f"{root}/lease.json")))
    except FileNotFoundError:
        return None


def put(uri: str, data: bytes) -> None:
    fs, root = filesystem(uri)
    write_file(fs, f"{root}/lease.json", data)


def foreign(beat: int = 0, host: str = "elsewhere", pid: int = 77) -> bytes:
    return json.dumps({"host": host, "pid": pid, "owner": "o", "beat": beat}).encode()


def until(condition: Callable[[], Any]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_a_lease_says_whose_it_is_and_ends_with_the_block(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    with hold(place) as held:
        first = content(place)
        assert first and first["host"] == socket.gethostname() and first["pid"] == os.getpid()
        until(lambda: (content(place) or first)["beat"] >= first["beat"] + 3)
        held.check()
        assert not held.lost and (content(place) or {})["owner"] == first["owner"]
    assert content(place) is None
    with pytest.raises(ZeroDivisionError), hold(place):
        raise ZeroDivisionError
    assert content(place) is None


def test_a_live_holder_is_respected_and_a_killed_one_is_not(place: str, holder: Callable[..., subprocess.Popen[str]]) -> None:
    process = holder(place)
    sentence = (
        rf"{place} is being computed by another job \(process {process.pid} on {socket.gethostname()}\); wait for it, or stop it first"
    )
    with pytest.raises(UserError, match=sentence), hold(place):
        pytest.fail("two jobs at once")
    assert process.poll() is None and (content(place) or {})["pid"] == process.pid
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = content(place)
    assert left and left["pid"] == process.pid
    with hold(place) as held:
        now = content(place)
        assert now and now["pid"] == os.getpid() and now["owner"] != left["owner"]
        held.check()
    assert content(place) is None


def test_a_part_of_a_job_needs_no_lease_of_its_own(place: str) -> None:
    with hold(place) as whole:
        with hold(place) as part:
            assert part is whole
        assert content(place) is not None
        whole.check()
    assert content(place) is None
    with hold(place) as again:
        assert again is not whole


def test_a_holder_that_ends_well_makes_room_at_once(place: str, holder: Callable[..., subprocess.Popen[str]]) -> None:
    process = holder(place)
    _, err = process.communicate()
    assert process.returncode == 0 and err == "" and content(place) is None


def test_who_watches_goes_on_when_the_holder_ends(place: str, holder: Callable[..., subprocess.Popen[str]]) -> None:
    """Its last beat may be what the watcher has seen first."""
    put(place, foreign())
    fs, root = filesystem(place)
    threading.Timer(0.3, lambda: fs.rm_file(f"{root}/lease.json")).start()
    with hold(place):
        assert (content(place) or {})["pid"] == os.getpid()


@pytest.mark.parametrize("left", [foreign(), b"{", b"", b"[1]", b'{"pid": 3}', foreign(pid=-1), foreign(host=socket.gethostname(), pid=1)])
def test_a_lease_that_does_not_change_is_left_over(place: str, left: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of a process on this machine that lives but is another: numbers are given again."""
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    put(place, left)
    with hold(place):
        assert (content(place) or {})["pid"] == os.getpid()
    assert content(place) is None


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1, 10**30], ids=["ours", "none", "too large"])
def test_a_lease_of_a_process_that_is_gone_is_not_watched(tmp_path: Path, pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 10.0**6)  # whoever watches does not come back
    put(str(tmp_path), foreign(host=socket.gethostname(), pid=pid))
    with hold(str(tmp_path)):
        pass
    assert content(str(tmp_path)) is None


def test_a_lease_of_another_machine_that_changes_is_respected(place: str) -> None:
    put(place, foreign())
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(0.02):
            put(place, foreign(count := count + 1))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"computed by another job \(process 77 on elsewhere\)"), hold(place):
            pytest.fail("two jobs at once")
    finally:
        ended.set()
        thread.join()
    assert (content(place) or {})["owner"] == "o"


def test_of_two_that_begin_at_once_one_gives_way(place: str, holder: Callable[..., subprocess.Popen[str]]) -> None:
    process = holder(place, settle=3.0, wait=False)
    until(lambda: process.poll() is not None or content(place))
    put(place, foreign())  # another, who saw no lease either
    out, err = process.communicate()
    assert process.returncode == 1 and out == ""
    assert err == f"error: {place} is being computed by another job (process 77 on elsewhere); wait for it, or stop it first\n"
    assert content(place) == json.loads(foreign())


def test_a_holder_is_told_that_it_lost_its_lease(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    with hold(place) as held:
        # A beat that has read the lease just before writes over this one; then it must be put again.
        until(lambda: put(place, foreign()) or time.sleep(0.1) or held.lost)
        with pytest.raises(UserError, match=r"computed by another job \(process 77 on elsewhere\)"):
            held.check()
    assert content(place) == json.loads(foreign())


def test_a_holder_that_cannot_write_is_told_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    root = tmp_path / "store"
    with hold(str(root)) as held:
        while root.is_dir():  # a beat may just be writing there
            shutil.rmtree(root, ignore_errors=True)
            try:
                root.write_text("no directory")
            except IsADirectoryError:
                continue
        time.sleep(0.2)
        held.check()
        monkeypatch.setattr(lease, "PATIENCE_S", 0.1)
        until(lambda: held.lost)
        with pytest.raises(UserError, match="could not write its lease for long: .*Not a directory"):
            held.check()
    assert root.read_text() == "no directory"


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file.*Not a directory"), hold(str(tmp_path / "file")):
        pytest.fail("held")


def test_a_store_does_not_mind_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, plan = str(tmp_path / "store"), tiny_plan()
    with hold(uri):
        (tmp_path / "store" / ".lease.json.0123abcd.tmp").write_text("{")  # of a job that was killed while it wrote
        assert store.start(uri, plan) == [0, 1]
        write_all(uri, plan)
        assert store.verify(uri) == [] and store.describe(uri)["images"] == 6
        shutil.copytree(uri, tmp_path / "copy", ignore=shutil.ignore_patterns("*.tmp"))  # a beat may remove its own while this copies
        assert content(str(tmp_path / "copy"))
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    assert store.verify(str(tmp_path / "copy")) == []
    with hold(str(tmp_path / "copy")):
        assert store.start(str(tmp_path / "copy"), plan) == []
