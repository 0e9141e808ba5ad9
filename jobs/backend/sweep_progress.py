"""Keeps the ledger and prints progress while a sweep runs, and stops it at Ctrl-C."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.experiment import Trial

from igkd.base.errors import INTERRUPTED, STOPPED, TIME_IS_UP, UserError
from igkd.base.storage import read_json
from igkd.base.time_limit import duration
from igkd.evaluation.progress import WORDS
from igkd.sweeps.ledger import Ledger, read_status, remaining_seconds
from igkd.sweeps.publish import publish
from igkd.training.state import read_history
from jobs.backend.halving import METRIC, Halving
from jobs.backend.one_trial import TRIES, Settings, T, Work, unfinished_row
from jobs.backend.start import awaited, end_at_once

SAY_S, SILENT_S = 30.0, 300.0
"""Least seconds between two lines about running trials, and most if no epoch ended."""
PATIENCE_S = 30.0
"""Seconds to wait for Tune to stop after Ctrl-C."""


class Interruption(ray.tune.Stopper):
    """Ends Tune from another thread. Tune pickles this object, so its event is global (a class attribute)."""

    asked = threading.Event()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return Interruption.asked.is_set()


def interruptible(sweep: Callable[[], T]) -> T:
    """Run a function that calls `run_trials` in a thread; at Ctrl-C, let Tune stop in order, with every run's last epoch saved.

    In the main thread Tune would handle Ctrl-C itself, silently.
    """
    Interruption.asked.clear()
    pool = ThreadPoolExecutor(1)
    future = pool.submit(sweep)
    try:
        return awaited(future)
    except KeyboardInterrupt:
        Interruption.asked.set()
        try:
            hangs = bool(wait([future], timeout=PATIENCE_S).not_done)
        except KeyboardInterrupt:  # a second one: it is to end now
            hangs = True
        if hangs:  # Ray taken from under the thread that waits for it, that thread, and so this process, would never end
            end_at_once(STOPPED, INTERRUPTED)
        ray.shutdown()
        raise
    finally:
        pool.shutdown(wait=False)


def begun_history(work: Work, settings: Settings) -> list[dict[str, Any]]:
    """The epochs that a run had when it was last broken off, one entry each; none if it has not begun."""
    with contextlib.suppress(UserError):  # there is no history, or it is damaged, which the run itself will report
        return read_history(work.here / work.cell_of(settings).config.out)
    return []


class Keeper(ray.tune.Callback):
    """A callback of Tune that keeps the ledger and prints a line for each event."""

    def __init__(self, ledger: Ledger, work: Work, halving: Halving | None) -> None:
        self.ledger, self.work, self.halving = ledger, work, halving
        self.histories: dict[str, list[dict[str, Any]]] = {}
        self.spoke, self.told = time.monotonic(), ""

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        cell = self.work.cell_of(settings_of_trial(trial))
        self.histories[trial.trial_id] = begun_history(self.work, settings_of_trial(trial))
        self.ledger.status.running[cell.name] = len(self.histories[trial.trial_id])
        self.ledger.status.epochs[cell.name] = cell.config.epochs
        self.ledger.write_status()

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        name, history = self.work.cell_of(settings_of_trial(trial)).name, self.histories[trial.trial_id]
        if "train_loss" in result and result["epoch"] > len(history):
            keys = ("epoch", "train_loss", "train_accuracy", "validation_loss", METRIC, "seconds")
            history.append({k: result[k] for k in keys})
        self.ledger.status.running[name] = len(history)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        settings = settings_of_trial(trial)
        cell, history = self.work.cell_of(settings), self.histories.pop(trial.trial_id, [])
        self.ledger.status.running.pop(cell.name, None)
        result = self.work.here / cell.config.out / "result.json"
        diverged, refused = ((trial.last_result or {}).get(name) for name in ("diverged", "refused"))
        if result.exists():
            row = read_json(result)
            self.ledger.add(row)
            self.say(f"{cell.name} {WORDS[row.get('state', 'done')]}: {headline(row)}")
        elif diverged:
            self.ledger.conclude(cell.name, unfinished_row(self.work, cell, settings, history, "diverged") | {"error": diverged})
            self.say(f"{cell.name} diverged: {diverged}")
        elif refused:
            self.ledger.status.failures[cell.name] = {"tries": 1, "error": refused}
            self.say(f"{cell.name} FAILED: {refused}")
        elif self.halving is not None and trial.trial_id in self.halving.stopped:
            row = unfinished_row(self.work, cell, settings, history, "pruned")
            self.ledger.conclude(cell.name, row)
            self.say(f"{cell.name} stopped early, after epoch {len(history)}: {headline(row)}, behind the others")
        self.ledger.write_status()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        name = self.work.cell_of(settings_of_trial(trial)).name
        error = _last_line(trial)
        self.ledger.status.running.pop(name, None)
        self.ledger.status.failures[name] = {"tries": TRIES, "error": error}
        self.say(f"{name} FAILED {TRIES} times: {error}")
        self.ledger.write_status()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.say(f"{self.work.cell_of(settings_of_trial(trial)).name} failed and is tried again: {_last_line(trial)}", "")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        status = self.ledger.status
        if time.time() - status.updated > 10:
            self.ledger.write_status()
        since = time.monotonic() - self.spoke
        if since > SAY_S and status.running:
            line = ", ".join(f"{name} at epoch {n} of {status.epochs[name]}" for name, n in sorted(status.running.items()))
            if line != self.told or since > SILENT_S:
                self.told = line
                self.say(line)

    def say(self, line: str, end: str | None = None) -> None:
        """Print a line, followed by the sweep's progress."""
        status, rows = self.ledger.status, self.ledger.rows
        left = remaining_seconds(status, rows, [*self.histories.values()])
        end = f" ({status.progress(rows)}{f'; about {duration(left)} left' if left else ''})" if end is None else end
        print(f"sweep: {line}{end}", flush=True)
        self.spoke = time.monotonic()


def conclude(root: Path) -> int:
    """Write a sweep's report and print its summary, and what there is to do if it is not finished.

    Returns:
        the exit status: 1 if runs failed, or are missing although the time was not up.
    """
    print(publish(root), flush=True)
    status = read_status(root)
    if status.failures:
        print(f"\n{len(status.failures)} run(s) failed, see above; the same command tries them again", flush=True)
        return 1
    if status.time_was_up:
        print(f"\n{TIME_IS_UP}", flush=True)
    return 0 if status.phase == "finished" or status.time_was_up else 1


def headline(row: Mapping[str, Any]) -> str:
    """A row's accuracies as text."""
    validation = f"validation {row['history'][-1][METRIC]:.1%}" if row["history"] else "no epoch"
    return f"{validation}, test {row['test']['accuracy']:.1%}" if "test" in row else validation


def settings_of_trial(trial: Trial) -> Settings:
    """The settings of a Tune trial."""
    return {k: v for k, v in trial.config.items()}


def _last_line(trial: Trial) -> str:
    """The last line of a trial's last error, which has the error's message."""
    try:
        text = Path(trial.error_file or "").read_text().strip()
    except OSError:
        text = ""
    if "OutOfMemoryError" in text:  # here the last line is Ray's advice
        return "its process was killed because the node had too little memory; free some, or run fewer at a time"
    lines = text.splitlines()
    return lines[-1].strip() if lines else "unknown, its process is gone"
