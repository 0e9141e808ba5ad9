"""Measure latency and memory of models on this machine: igkd latency MODEL MODEL ...

A MODEL is a checkpoint's directory, run by torch unchanged, or a file from igkd export: NAME.onnx is run by ONNX Runtime, NAME.pt2 by
torch. Each model runs on the CPU in a process of its own, from uint8 pixels to logits. After a warm-up the models take turns, so that load
on the machine affects all alike; the speed relative to the first model is the median over rounds.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from igkd.base.errors import UserError, run_cli
from igkd.base.provenance import command, now, provenance
from igkd.base.storage import check_writable, write_json
from igkd.config.command_line import parse
from igkd.config.latency import LatencyConfig

CALLS = 5
"""Forward passes of a model in one turn."""
Timed = Callable[[int], Sequence[float]]
"""A function that runs a number of passes and gives the milliseconds of each."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Latencies of one model at one batch size and number of threads, in milliseconds."""

    calls: int
    p50: float
    p95: float
    p99: float
    """p50, p95 and p99 are percentiles over single passes."""
    rounds: tuple[float, ...]
    """The median of each round's passes."""

    def times_as_fast(self, other: "Timing") -> float:
        """How many times as fast as `other`, which must come from the same `take_turns`: the median of the rounds' ratios."""
        return statistics.median(theirs / own for own, theirs in zip(self.rounds, other.rounds, strict=True))


def take_turns(models: Mapping[str, Timed], rounds: int) -> dict[str, Timing]:
    """Time models in turns of CALLS passes; a first round is a warm-up and is not counted.

    Args:
        models: by name.
        rounds: number of counted rounds, at least 1.
    """
    times: dict[str, list[Sequence[float]]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, timed in models.items():
            taken = timed(CALLS)
            if turn:
                times[name].append(taken)
    timings = {}
    for name, taken_by_round in times.items():
        p50, p95, p99 = np.percentile(np.concatenate(taken_by_round), (50, 95, 99)).tolist()
        medians = tuple(map(statistics.median, taken_by_round))
        timings[name] = Timing(calls=rounds * CALLS, p50=p50, p95=p95, p99=p99, rounds=medians)
    return timings


class Process:
    """A model in a process of its own."""

    def __init__(self, model: str, batch: int, threads: int) -> None:
        self.model, self.peak_mib = model, 0.0
        program = [sys.executable, "-m", "igkd.deployment.timed_process", model, str(batch), str(threads)]
        here = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # A new session, so that Ctrl-C reaches only this process. When this process ends, the child's input ends, and so does the child.
        self.process = subprocess.Popen(program, **pipes, env=environment, start_new_session=True)

    def answer(self) -> dict[str, Any]:
        """The child's next line, a JSON object.

        Raises:
            UserError: the child reports an error, or has ended.
        """
        said: dict[str, Any] = json.loads(_pipe(self.process.stdout).readline() or '{"error": ""}')
        if "error" in said:
            why = said["error"] or f"its process ended with status {self.process.wait()}, for want of memory or by a signal?"
            raise UserError(why if self.model in why else f"{self.model}: {why}")
        return said

    def timed(self, count: int) -> list[float]:
        with contextlib.suppress(BrokenPipeError):  # `answer` reports why the child ended
            print(count, file=_pipe(self.process.stdin), flush=True)
        said = self.answer()
        self.peak_mib = said["peak_mib"]
        return list(said["milliseconds"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                _pipe(pipe).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@contextlib.contextmanager
def processes(models: Sequence[str], batch: int, threads: int) -> Iterator[dict[str, Process]]:
    """Start and warm up a process for each model; they are ended with the block."""
    with contextlib.ExitStack() as stack:
        started = {}
        for model in models:
            started[model] = Process(model, batch, threads)
            stack.callback(started[model].close)
        for process in started.values():
            process.answer()
        yield started


def measure(
    models: Sequence[str],
    batches: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    found: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Rows of model, batch, threads, calls, p50, p95, p99 (ms), peak_mib (MiB, whole process), times_as_fast (relative to the first).

    Args:
        found: called with all rows so far, each time that a batch size and a number of threads are done.

    Raises:
        UserError: a model does not exist, or cannot be run.
    """
    rows = []
    for batch in batches:
        for count in threads:
            print(f"latency: batches of {batch} by {count} thread(s)", file=sys.stderr, flush=True)
            with processes(models, batch, count) as started:
                timings = take_turns({name: process.timed for name, process in started.items()}, rounds)
            for name, timing in timings.items():
                row = {"model": name, "batch": batch, "threads": count} | dataclasses.asdict(timing)
                row |= {"peak_mib": started[name].peak_mib, "times_as_fast": timing.times_as_fast(timings[models[0]])}
                rows.append(row)
            found(rows)
    return rows


def usual_threads() -> tuple[int, ...]:
    """1, and the number of processors that this process may use."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        count = os.cpu_count() or 1
    return (1, count) if count > 1 else (1,)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `measure` as a text table. The width of a column does not depend on its figures, so that lines can be printed as they
    come."""
    cells = [("model", "batch", "threads", "p50 ms", "p95", "p99", "peak MiB", "times as fast")]
    for row in rows:
        times = (f"{row[name]:.2f}" for name in ("p50", "p95", "p99"))
        cells.append(
            (row["model"], str(row["batch"]), str(row["threads"]), *times, f"{row['peak_mib']:,.0f}", f"{row['times_as_fast']:.2f}")
        )
    widths = [max(len(cells[0][0]), *(len(row["model"]) for row in rows)), *(max(8, len(name)) for name in cells[0][1:])]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    )


def main() -> None:
    config, started = parse(LatencyConfig, "igkd latency"), now()
    if config.out is not None:
        check_writable(Path(config.out))

    def found(rows: list[dict[str, Any]]) -> None:
        """Keep all rows, in case that this is stopped, and print those that are new."""
        if config.out is not None:
            made = provenance(command(), 0, started)
            write_json(Path(config.out), {"job": "latency", "config": dataclasses.asdict(config), "latency": rows, "provenance": made})
        lines = table(rows).splitlines()
        first = len(rows) == len(config.models)
        print("\n".join(lines if first else lines[-len(config.models) :]), flush=True)

    measure(config.models, config.batches, config.threads or usual_threads(), config.rounds, found)


if __name__ == "__main__":
    run_cli(main)
