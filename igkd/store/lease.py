"""Only one job at a time computes a store, trains a run or drives a sweep or pipeline in a directory.

Parts of a store are atomic and deterministic, and a run's states are written whole, so two jobs at work do no harm but waste: the lease is
there to say so clearly and early, not to make a result correct. Therefore it may be simple: a file `lease.json` that its holder rewrites
every few seconds. The clocks of two machines are never compared; whoever finds the lease of another watches whether it changes.
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
"""Seconds between two beats of a holder."""
WATCHED_BEATS = 3
"""A lease that does not change for so many beats is left over."""
SETTLE_S = 1.0
"""How long one waits, having written a lease, for another's that was written in the same moment."""
PATIENCE_S = 120.0
"""A holder that could not write for so long must expect that another has taken over."""


class Lease:
    """A lease that is held. A thread keeps it alive; `lost` and `check` tell what the thread found."""

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
        """Cheap enough to be called between any two parts.

        Raises:
            UserError: the lease is lost.
        """
        if self._why is not None:
            raise UserError(self._why)

    def take(self) -> None:
        """Write the lease and begin to keep it; raises UserError if another job did so in the same moment."""
        self._write()
        time.sleep(SETTLE_S)
        there = _parse(_read(self._fs, self._path))
        if there and there["owner"] != self._mine["owner"]:
            raise UserError(_busy(self._uri, there))
        self._thread.start()

    def release(self) -> None:
        """Stop keeping the lease, and remove it if it is still one's own; what stays because of an error is left over and harms nobody."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(WATCHED_BEATS * BEAT_S)  # not for ever: it may hang in a connection
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
"""What this process holds."""


@contextlib.contextmanager
def hold(uri: str) -> Iterator[Lease]:
    """Hold the lease of a store, or of another directory, while the block runs; it is removed at the end, also after an exception.

    A lease that is left over, from a job that was killed, is taken over: at once if its process was on this machine and is gone, or else
    after `WATCHED_BEATS` beats in which it did not change. Writes to the place: do not ask for the lease of a finished store.

    Args:
        uri: the directory, local or s3://; it need not exist.

    Returns:
        the lease; call its `check` between parts.

    Raises:
        UserError: another job is at work there, or the place cannot be read or written.
    """
    fs, root = filesystem(uri)
    path = f"{root}/{LEASE}"
    if path in _held:  # by a job of which this block is a part: a pipeline's directory is also that of its sweep
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


def _wait_until_left_over(uri: str, fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Return when there is no lease, or one that nobody keeps; raises UserError when it is kept."""
    first = _read(fs, path)
    there = _parse(first)
    if first is None or (there and _is_gone(there)):
        return
    for _ in range(WATCHED_BEATS):
        time.sleep(BEAT_S)
        now = _read(fs, path)
        if now is None:
            return  # its holder has just finished
        if now != first:
            raise UserError(_busy(uri, _parse(now) or {}))


def _read(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    try:
        return read_file(fs, path)
    except FileNotFoundError:
        return None


def _parse(data: bytes | None) -> dict[str, Any] | None:
    """What a lease says; None if there is none or it is damaged."""
    try:
        value = parse_json(data or b"")
    except ValueError:
        return None
    return value if isinstance(value, dict) and {"host", "pid", "owner"} <= value.keys() else None


def _is_gone(lease: dict[str, Any]) -> bool:
    """Whether a lease's process was on this machine and runs no more. One with our own number was: in a container that is started again,
    programs get the same numbers again."""
    pid = lease["pid"]
    if lease["host"] != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)  # only asks
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # somebody else's, so it runs
    return False


def _busy(uri: str, lease: dict[str, Any]) -> str:
    who = f"process {lease.get('pid', '?')} on {lease.get('host', '?')}"
    return f"{uri} is being computed by another job ({who}); wait for it, or stop it first"
