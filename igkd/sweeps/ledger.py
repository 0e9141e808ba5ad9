"""The files of a sweep that record what is done; the package's docstring describes the layout."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from igkd.base.errors import CONTINUES, UserError
from igkd.base.run_directory import STATE, read_object, read_row
from igkd.base.schema import typed
from igkd.base.storage import write_bytes, write_json
from igkd.base.storage_errors import explain
from igkd.base.time_limit import duration
from igkd.evaluation.progress import progress

STATUS = "status.json"
ROWS = "rows.jsonl"
SILENT_S = 60.0
"""A driver that has not written its status for this many seconds counts as gone."""

Row = dict[str, Any]
Phase = Literal["running", "finished", "stopped"]
Kind = Literal["ablation", "tuning", "search"]


@dataclass(kw_only=True)
class Status:
    """What a sweep's driver regularly writes to status.json."""

    command: str
    planned: list[str]
    """Names of all runs; empty for a search, whose runs are not known in advance."""
    total: int
    slots: int
    """Number of runs at a time."""
    began: float
    """Unix time."""
    updated: float = 0.0
    deadline: float | None = None
    """Unix time at which the sweep stops by itself."""
    phase: Phase = "running"
    kind: Kind = "ablation"
    page: str = "report.html"
    """File name of the report."""
    running: dict[str, int] = field(default_factory=dict)
    """Name of a run -> its finished epochs."""
    epochs: dict[str, int] = field(default_factory=dict)
    """Name of a run -> its total number of epochs."""
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a run -> its number of `tries` and last `error`."""
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def done(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of this driver's runs; the directory may hold rows of other grids, too."""
        return [row for row in rows if not self.planned or row["cell"] in self.planned]

    def alive(self, now: float) -> bool:
        """Whether the driver is running, judged by the time of its last status.

        Args:
            now: Unix time.
        """
        return self.phase == "running" and now - self.updated < SILENT_S

    @property
    def time_was_up(self) -> bool:
        """Whether the driver stopped at its time limit, and not for another reason."""
        return self.phase == "stopped" and self.deadline is not None and self.updated >= self.deadline

    def progress(self, rows: Sequence[Row], now: float | None = None) -> str:
        """How far this driver's runs are, in the words of `evaluation.progress`.

        Args:
            rows: the rows of the directory.
            now: Unix time, by default the present.
        """
        alive = self.alive(time.time() if now is None else now)
        done = self.done(rows)
        others = len(rows) - len(done)
        said = progress(done, self.total, running=len(self.running) if alive else 0, failed=len(self.failures))
        return said + (f" (and {others:,} of other grids)" if others else "")


class Ledger:
    """A sweep's directory, as its driver writes it."""

    def __init__(self, root: Path, status: Status) -> None:
        self.root, self.status = root, status
        self.refresh()
        self.write_status()

    def refresh(self) -> None:
        """Write rows.jsonl again from the runs' results: a driver may be killed between a result and its line, or within a line, and a
        run may end while its driver is being stopped."""
        self.rows = read_rows(self.root)
        write_bytes(self.root / ROWS, b"".join(_line(row) for row in self.rows))

    def add(self, row: Row) -> None:
        """Append the row of a run whose result.json exists."""
        self.rows.append(row)
        try:
            with (self.root / ROWS).open("ab") as file:
                file.write(_line(row))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.root / ROWS}: {explain(error)}") from None
        self.status.failures.pop(row["cell"], None)

    def conclude(self, name: str, row: Row) -> None:
        """Write the row of a run that ended without a network (stopped early, diverged) as its result, and append it."""
        write_json(self.root / "students" / name / "result.json", row)
        with contextlib.suppress(OSError):
            (self.root / "students" / name / STATE).unlink(missing_ok=True)
        self.add(row)

    def close(self, complete: Callable[[list[Row]], bool]) -> bool:
        """Write the last status of this driver, from what the runs left on disk; gives whether the sweep is finished.

        Args:
            complete: whether these rows are all that were asked for.
        """
        self.refresh()
        self.status.running.clear()
        finished = complete(self.rows)
        self.write_status("finished" if finished else "stopped")
        return finished

    def write_status(self, phase: Phase | None = None) -> None:
        """Write status.json: the driver is running, or `phase` says how it ended."""
        self.status.phase = phase or self.status.phase
        self.status.updated = time.time()
        write_json(self.root / STATUS, asdict(self.status))


def read_rows(root: Path) -> list[Row]:
    """The result rows of all finished runs, ordered by the time at which they started."""
    found = sorted((root / "students").glob("*/result.json"))
    # jobs.distill's, too. The name is the directory's own: one that a row gives could lead elsewhere.
    rows = [{"share": 1.0, "state": "done"} | read_row(path) | {"cell": path.parent.name} for path in found]
    return sorted(rows, key=lambda row: (str(row.get("provenance", {}).get("started", "")), row["cell"]))


def read_status(root: Path) -> Status:
    """The driver's last status.

    Raises:
        UserError: there is no status.json, or it is invalid.
    """
    if not (root / STATUS).exists():
        raise UserError(f"{root} is no sweep (it has no {STATUS}); jobs.ablate, jobs.tune and jobs.search make one")
    try:
        status = typed(Status, read_object(root / STATUS))
        if status.page != Path(status.page).name or not status.page.endswith(".html"):  # must not lead elsewhere: it is written
            raise TypeError
        if not all(isinstance(one.get("tries"), int) and isinstance(one.get("error"), str) for one in status.failures.values()):
            raise TypeError
        return status
    except TypeError:
        raise UserError(f"{root / STATUS} is not of a sweep of this version; run the sweep's command again") from None


def remaining_seconds(status: Status, rows: Sequence[Row], running: Sequence[Sequence[Row]] = ()) -> float | None:
    """Seconds of work left, at the speed of the epochs so far; None before there is one.

    Runs that have not started are assumed to have the usual number of epochs; running ones have those that are left. After its epochs each
    takes as long as the finished ones, on average, did besides theirs: to begin, and to be evaluated.

    Args:
        running: histories of the unfinished runs, if they are known.
    """
    histories = [row["history"] for row in rows]
    seconds = [entry["seconds"] for history in [*histories, *running] for entry in history]
    lengths = [*map(len, histories)] or [*status.epochs.values()]
    if not seconds or not lengths:
        return None
    mean: float = sum(seconds) / len(seconds)
    usual = sum(lengths) / len(lengths)  # for a search, most of whose trials are stopped early
    done = {row["cell"] for row in rows}
    left: float = sum(max(0, status.epochs.get(name, usual) - epochs) for name, epochs in status.running.items())
    known = [n for n in status.planned if n not in done and n not in status.running and n not in status.failures]
    waiting = len(known) if status.planned else max(0, status.total - len(done) - len(status.running) - len(status.failures))
    left += sum(status.epochs.get(n, usual) for n in known) if status.planned else waiting * usual
    besides: float = sum(row["provenance"].get("seconds", 0.0) - sum(entry["seconds"] for entry in row["history"]) for row in rows)
    unfinished = waiting + len(status.running)
    return (left * mean + unfinished * max(0.0, besides / max(1, len(rows)))) / max(1, min(status.slots, unfinished))


def describe(status: Status, rows: Sequence[Row], now: float) -> list[str]:
    """Lines that say what is done, running and failed, and when the sweep will end.

    Args:
        now: Unix time.
    """
    alive = status.alive(now)
    phase: str = status.phase
    if phase == "running" and not alive:
        phase = f"killed (its driver is silent); {CONTINUES}"
    elif phase == "stopped":
        phase = f"stopped when its time was up; {CONTINUES}" if status.time_was_up else f"stopped; {CONTINUES}"
    lines = [f"{phase}: {status.progress(rows, now)}"]
    left = remaining_seconds(status, rows)
    if alive and left is not None and left < 1e9:
        ends = now + left
        clock = time.strftime("%a %H:%M", time.localtime(ends))
        lines.append(f"ends about {clock}, in {duration(left)}")
        if status.deadline is not None and 0 <= status.deadline < ends:
            lines.append(f"but stops at {time.strftime('%a %H:%M', time.localtime(status.deadline))}, before all is done")
    if alive:
        lines += [f"  running  {name}: epoch {epochs} of {status.epochs.get(name, '?')}" for name, epochs in sorted(status.running.items())]
    lines += [f"  failed   {name} ({f['tries']} tries): {f['error']}" for name, f in sorted(status.failures.items())]
    return lines


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row) + "\n").encode()
