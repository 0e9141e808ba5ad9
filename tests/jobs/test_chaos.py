"""Disturbed at random and started again, `jobs.precompute` ends with the store of an undisturbed run, row for row and byte for byte.

A real cluster of three nodes on this machine; the job is a process of its own, as a user's. CHAOS_RUNS and CHAOS_SEED choose how many runs
and which.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igkd.base.storage import filesystem
from igkd.store import verify
from tests.helpers.nodes import Nodes
from tests.helpers.paths import ROOT
from tests.helpers.servers import free_port

RUNS, SEED = int(os.environ.get("CHAOS_RUNS", "6")), int(os.environ.get("CHAOS_SEED", "0"))
PARTS, ROWS_PER_FILE = 12, 6
PATIENCE = 400


class Tap:
    """A connection to a server that can be cut: what a lost network or endpoint looks like to a client."""

    def __init__(self, port: int) -> None:
        self.target, self.port = port, free_port()
        self.open: set[socket.socket] = set()
        self.listener: socket.socket | None = None
        self.restore()

    def restore(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self) -> None:
        assert self.listener is not None
        for one in (self.listener, *self.open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                client = listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            ends = {client, server}
            self.open |= ends
            answers = threading.Thread(target=self._copy, args=(server, client), daemon=True)
            answers.start()
            self._copy(client, server)
            answers.join()
            self.open -= ends

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def tap(s3: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tap]:
    one = Tap(int(s3_server.rsplit(":", 1)[1]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{one.port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    yield one
    one.cut()


@pytest.fixture
def nodes(tap: Tap, own_ray: None) -> Iterator[Nodes]:
    one = Nodes()
    for _ in range(2):
        one.add(1)
    yield one
    one.cluster.shutdown()


def job(teacher: str, uri: str) -> list[str]:
    command = [sys.executable, "-m", "jobs.precompute", "--images", f"shapes:train={PARTS * ROWS_PER_FILE - 2}", "--teacher", teacher]
    return [*command, "--store", uri, "--steps", "4", "--engine", "captum", "--rows-per-file", str(ROWS_PER_FILE)]


def parts_of(uri: str) -> dict[str, bytes]:
    """Name and bytes of every Parquet file of a store; what was being put in place is not there yet."""
    fs, root = filesystem(uri)
    if not fs.exists(root):
        return {}
    return {path.rsplit("/", 1)[-1]: fs.cat_file(path) for path in fs.ls(root, detail=False) if path.endswith(".parquet")}


def count(uri: str) -> int:
    fs, root = filesystem(uri)
    return sum(path.endswith(".parquet") for path in fs.ls(root, detail=False)) if fs.exists(root) else 0


def ids_of(parts: dict[str, bytes]) -> list[int]:
    tables = [pq.read_table(pa.BufferReader(data), columns=["image_id"]) for data in parts.values()]
    return [i for table in tables for i in table.column("image_id").to_pylist()]


def started(command: list[str], address: str, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as out:
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": address}, stdout=out, stderr=subprocess.STDOUT)


def disturb(kind: str, driver: "subprocess.Popen[bytes]", nodes: Nodes, tap: Tap, rng: random.Random) -> bool:
    """Do the damage; False if it came too late to be any."""
    if driver.poll() is not None:
        return False
    if kind == "driver":
        driver.kill()
    elif kind == "worker":
        busy = nodes.workers()
        if not busy:
            return False
        os.kill(rng.choice(busy), signal.SIGKILL)
    elif kind == "node":
        nodes.lose(rng.randrange(2))
    elif kind == "endpoint":
        tap.cut()
        with suppress(subprocess.TimeoutExpired):  # the job gives up, or waits for its own retries
            driver.wait(rng.uniform(1, 15))
        tap.restore()
    return True


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_chaos(nodes: Nodes, tap: Tap, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address, log = nodes.cluster.address, tmp_path / "log"

    def finish(uri: str, driver: "subprocess.Popen[bytes]") -> int:
        """Wait, and start again until it ends well; gives how many starts that took."""
        for starts in range(1, 6):
            deadline = time.monotonic() + PATIENCE
            while driver.poll() is None and time.monotonic() < deadline:
                nodes.replace_dead()
                time.sleep(0.5)
            if driver.poll() == 0:
                return starts
            if driver.poll() is None:
                break
            driver = started(job(teacher, uri), address, log)
        driver.kill()
        raise AssertionError(f"{uri} does not become complete:\n{log.read_text()[-5000:]}")

    whole = str(tmp_path / "whole")
    finish(whole, started(job(teacher, whole), address, log))
    expected = parts_of(whole)
    assert len(expected) == PARTS and sorted(ids_of(expected)) == list(range(PARTS * ROWS_PER_FILE - 2))

    rng, kinds = random.Random(SEED), ("driver", "worker", "node", "endpoint")
    happened = dict.fromkeys(kinds, 0)
    lost = repeated = differing = late = restarts = 0
    run = 0
    while sum(happened.values()) < RUNS:
        kind = kinds[run % len(kinds)]
        uri = f"s3://igkd/chaos-{run}" if kind == "endpoint" or run // len(kinds) % 2 else str(tmp_path / f"chaos-{run}")
        run += 1
        fraction = rng.random() * 0.8
        driver = started(job(teacher, uri), address, log)
        deadline = time.monotonic() + PATIENCE
        while driver.poll() is None and count(uri) <= fraction * PARTS and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.random() * 0.2)  # anywhere between two parts
        before = parts_of(uri)
        if disturb(kind, driver, nodes, tap, rng):
            happened[kind] += 1
        else:
            late += 1
            assert late <= RUNS, "the job is faster than what is to disturb it"
        starts = finish(uri, driver)
        restarts += starts - 1
        found = parts_of(uri)
        ids = ids_of(found)
        lost += len(set(ids_of(expected)) - set(ids))
        repeated += len(ids) - len(set(ids))
        differing += sum(len(ids_of({name: found[name]})) for name in found if found[name] != expected.get(name))
        assert all(before[name] == found[name] for name in before)
        with capsys.disabled():
            print(f"chaos: {kind} at {len(before)}/{PARTS} parts, {starts} start(s), {'S3' if '://' in uri else 'disk'}", flush=True)
        assert verify(uri) == []
    summary = ", ".join(f"{kind} {times}" for kind, times in happened.items())
    with capsys.disabled():
        print(
            f"chaos: {sum(happened.values())} runs ({summary}), {restarts} restarts, {late} too late: "
            f"lost {lost}, repeated {repeated}, differing {differing}"
        )
    assert (lost, repeated, differing) == (0, 0, 0) and all(happened[kind] for kind in kinds[:RUNS])
