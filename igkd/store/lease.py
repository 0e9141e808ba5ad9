"""A lease on a directory: only one job at a time computes a store, trains a run, or drives a sweep or pipeline there.

Two jobs in one directory would waste work, but not corrupt it, since files are written atomically and their content is deterministic. So
the lease only has to tell users early, and may be simple: a file `lease.json` that its holder rewrites every few seconds. Another job
watches whether the file changes; clocks of different machines are never compared.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import fsspec

from igkd.base.errors import UserError
from igkd.base.storage import filesystem, parse_json, read_file, remove_file, write_file

LEASE = "lease.json"
BEAT_S = 5.0
"""Seconds between two writes of the lease by its holder (beats)."""
WATCHED_BEATS = 3
"""A lease that does not change for this many beats counts as left over from a job that was killed."""
SETTLE_S = 1.0
"""Seconds to wait after writing a lease, to see whether another job wrote one at the same moment."""
PATIENCE_S = 120.0
"""After this many seconds without a successful write, a holder must assume that another job has taken over."""


class Lease:
    """A lease held by this process. A thread rewrites it regularly; `lost` and `check` report what the thread found."""

    def __init__(self, uri: str, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self._uri, self._fs, self._path = uri, fs, path
        self._mine: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "owner": secrets.token_hex(16), "beat": 0}
        self._stop = threading.Event()
        self._why: str | None = None
        self._thread = threading.Thread(target=self._keep, name="igkd lease", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether another job has taken the lease, or may have."""
        return self._why is not None

    def check(self) -> None:
        """Raise if the lease was lost; cheap enough to call after every part.

        Raises:
            UserError: another job has, or may have, taken the lease.
        """
        if self._why is not None:
            raise UserError(self._why)

    def take(self) -> None:
        """Write the lease and start the thread that keeps it; raises UserError if another job wrote one at the same moment."""
        self._write()
        time.sleep(SETTLE_S)
        there = _parse(_read(self._fs, self._path))
        if there and there["owner"] != self._mine["owner"]:
            raise UserError(_busy(self._uri, there))
        self._thread.start()

    def release(self) -> None:
        """Stop the thread, and remove the lease unless another job has taken it. If removal fails, the file counts as left over later."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(WATCHED_BEATS * BEAT_S)  # with a timeout: the thread may be blocked by the network
        with contextlib.suppress(UserError):
            there = _parse(_read(self._fs, self._path))
            if there and there["owner"] == self._mine["owner"]:
                remove_file(self._fs, self._path)

    def _write(self) -> None:
        write_file(self._fs, self._path, (json.dumps(self._mine) + "\n").encode())

    def _keep(self) -> None:
        written = time.monotonic()
        while not self._stop.wait(BEAT_S) and not self.lost:
            try:
                there = _parse(_read(self._fs, self._path))
                if there and there["owner"] != self._mine["owner"]:
                    self._why = _busy(self._uri, there)
                elif not self._stop.is_set():
                    self._mine["beat"] += 1
                    self._write()
                    written = time.monotonic()
            except UserError as error:
                if time.monotonic() - written > PATIENCE_S:
                    self._why = f"another job may be computing {self._uri}, since this one could not write its lease for long: {error}"


_held: dict[str, Lease] = {}
"""The leases that this process holds, by path."""


@contextlib.contextmanager
def hold(uri: str) -> Iterator[Lease]:
    """Hold the lease of a directory while the block runs; it is removed at the end, also after an exception.

    A lease left over from a killed job is taken over: at once if its process ran on this machine and has ended, else after it has not
    changed for `WATCHED_BEATS` beats. This writes into the directory, so do not call it for a finished store.

    Args:
        uri: the directory, local or s3://; it need not exist.

    Returns:
        the lease; call its `check` between parts.

    Raises:
        UserError: another job is at work there, or the place cannot be read or written.
    """
    fs, root = filesystem(uri)
    path = f"{root}/{LEASE}"
    if path in _held:  # by an enclosing block: a pipeline and its sweep share one directory
        yield _held[path]
        return
    _wait_until_left_over(uri, fs, path)
    lease = Lease(uri, fs, path)
    try:
        lease.take()
        _held[path] = lease
        yield lease
    finally:
        _held.pop(path, None)
        lease.release()


def at_work(uri: str) -> bool:
    """Whether a job is at work in a directory. A lease of this machine is believed if its process exists; another one is watched for some
    seconds, in which it must change.

    Raises:
        UserError: the place cannot be read.
    """
    fs, root = filesystem(uri)
    there = _parse(_read(fs, f"{root}/{LEASE}"))
    if there is not None and there["host"] == socket.gethostname():
        return not _is_gone(there)
    return _beating(fs, f"{root}/{LEASE}") is not None


def _wait_until_left_over(uri: str, fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Return when there is no lease, or one that is left over; raises UserError if its holder is alive."""
    if (there := _beating(fs, path)) is not None:
        raise UserError(_busy(uri, there))


def _beating(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """A lease that changes while it is watched; None if there is none, or it is left over."""
    first = _read(fs, path)
    there = _parse(first)
    if first is None or (there and _is_gone(there)):
        return None
    for _ in range(WATCHED_BEATS):
        time.sleep(BEAT_S)
        now = _read(fs, path)
        if now is None:
            return None  # its holder has just finished
        if now != first:
            return _parse(now) or {}
    return None


def _read(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    try:
        return read_file(fs, path)
    except FileNotFoundError:
        return None


def _parse(data: bytes | None) -> dict[str, Any] | None:
    """A lease's content; None if there is none or it is damaged."""
    try:
        value = parse_json(data or b"")
    except ValueError:
        return None
    return value if isinstance(value, dict) and {"host", "pid", "owner"} <= value.keys() else None


def _is_gone(lease: dict[str, Any]) -> bool:
    """Whether a lease's process ran on this machine and has ended.

    A lease with our own process id is from an earlier process: a restarted container numbers its processes anew.
    """
    pid = lease["pid"]
    if lease["host"] != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)  # signal 0 only checks that the process exists
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # it exists, and belongs to another user
    return False


def _busy(uri: str, lease: dict[str, Any]) -> str:
    who = f"process {lease.get('pid', '?')} on {lease.get('host', '?')}"
    return f"{uri} is being computed by another job ({who}); wait for it, or stop it first"
