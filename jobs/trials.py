"""Running many students on Ray Tune: one process a run, as many at a time as fit, with a ledger of what is done.

Tune places the runs, retries them, stops those that lag and logs them for TensorBoard. What is done is known from the run directories
alone, not from Tune's snapshots: these are some seconds old when a driver is killed, and are pickles.
"""

import contextlib
import dataclasses
import datetime
import functools
import gc
import importlib.util
import logging
import math
import os
import shutil
import threading
import time
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import ray.tune
import torch
from numpy.typing import NDArray
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from igkd import runs
from igkd.config import DistillConfig
from igkd.errors import UserError
from igkd.files import read_json
from igkd.models import ImageClassifier
from igkd.runs import STATE
from igkd.samples import Samples
from igkd.store import Store
from igkd.sweeps import estimate
from igkd.sweeps.grid import Cell
from igkd.sweeps.ledger import Ledger, duration, remaining_seconds
from igkd.tasks import Unseen, distill_task, for_workers, identity, open_teacher_of
from igkd.train import Diverged, read_history
from igkd.trainer import Trainer, finish_run
from jobs.runtime import fetched

logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
# Tune hands the driver's AWS keys to its runs in a runtime environment, which Ray writes to its log. They have those of their node.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update({name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")})

METRIC = "validation_accuracy"
TRIES = 3
SAY_S = 30.0
"""Seconds between two lines about runs that go on."""
PATIENCE_S = 30.0
"""For Tune to stop after Ctrl-C."""
Settings = dict[str, Any]
T = TypeVar("T")
CellOf = Callable[[Settings], Cell]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What all runs of a sweep know: a small value."""

    cell_of: CellOf
    """What Tune says of a run, to the run."""
    here: Path
    """The driver's working directory, to which paths of a cell refer."""
    store: str
    """Its absolute URI."""
    fingerprints: dict[str, str]
    command: str
    """As the user typed it."""
    teacher: ray.ObjectRef[ImageClassifier | None]
    unseen: ray.ObjectRef[Unseen] | None = None
    """The images that networks are judged by at the end; None where there are none."""


@functools.lru_cache(maxsize=1)
def stored_samples(uri: str, fingerprint: str, views: bool) -> tuple[Samples, NDArray[np.bool_]]:
    """All rows of a store, decoded once in a process that runs many students one after the other."""
    return Store.open(uri).samples(views=views)


def train_cell(settings: Settings, work: Work) -> None:
    """One run, in a process of Tune's, which tries it again after an error, but not after one of ours: that would come again."""
    try:
        run_cell(settings, work)
    except UserError as error:
        ended = "diverged" if isinstance(error, Diverged) else "refused"
        ray.tune.report({METRIC: 0.0, "epoch": work.cell_of(settings).config.epochs, ended: str(error)})


def run_cell(settings: Settings, work: Work) -> None:
    """One run: goes on from the state in its directory, tells Tune every epoch, and leaves its result."""
    cell = work.cell_of(settings)
    config, out, started = cell.config, work.here / cell.config.out, runs.now()
    finished = runs.claim(out, config, identity(config, work.fingerprints))
    if finished is not None:  # retried after its last report was lost
        ray.tune.report(finished["history"][-1])
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = for_workers(dataclasses.replace(config, store=work.store))
    rows = stored_samples(work.store, work.fingerprints["store_fingerprint"], config.which_logits == "views")
    task = distill_task(resolved, fetched(work.teacher), rows)
    if work.unseen is not None:
        task = dataclasses.replace(task, test=functools.partial(fetched, work.unseen))
    trainer = Trainer(task, lambda network: network.to(device), progress=lambda line: None)
    if (out / STATE).exists():
        trainer.load(out)
    for history in trainer.epochs():
        if not trainer.finished:
            trainer.save(out)
            ray.tune.report(history[-1])
    trainer.write_outcome(out / "outcome")
    made: Settings = {"name": cell.label, "arm": cell.label, "content": config.content, "recipe": config.recipe}
    made |= {"cell": cell.name, "share": config.share, "state": "done", "settings": settings}
    parameters = Store.open(work.store).plan.teacher_parameters
    finish_run("distill", config, out, out / "outcome", work.command, started, made, parameters)
    shutil.rmtree(out / "outcome")
    (out / STATE).unlink(missing_ok=True)
    ray.tune.report(trainer.history[-1])


class Halving(ASHAScheduler):
    """ASHA (Li et al. 2020), which remembers whom it stopped, and learns from the rows of an earlier driver."""

    def __init__(self, epochs: int, spared: frozenset[str] = frozenset(), first: int = 9) -> None:
        """Args:
        epochs: of a whole run.
        spared: cells that it neither stops nor compares others with.
        first: nobody is stopped before this fraction of the epochs, 1 / first.
        """
        super().__init__(
            time_attr="epoch", metric=METRIC, mode="max", max_t=epochs + 1, grace_period=max(1, epochs // first), reduction_factor=3
        )
        self.stopped: set[str] = set()
        self.spared = spared

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if trial.config.get("cell") in self.spared:
            return str(self.CONTINUE)
        action: str = super().on_trial_result(tune_controller, trial, result)
        if action == self.STOP:
            self.stopped.add(trial.trial_id)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if trial.config.get("cell") not in self.spared:
            super().on_trial_complete(tune_controller, trial, result)


def replay(halving: Halving, rows: list[dict[str, Any]]) -> None:
    """Tell ASHA how runs of an earlier driver went, so that new ones are compared with them."""
    nobody: Any = None  # ASHA does not look at Tune's controller
    for row in rows:
        trial: Any = types.SimpleNamespace(trial_id=row["cell"], config={"cell": row["cell"]})
        halving.on_trial_add(nobody, trial)
        for entry in row["history"]:
            halving.on_trial_result(nobody, trial, entry)
    halving.stopped.clear()


class Interruption(ray.tune.Stopper):
    """Ends Tune from another thread. Tune pickles it, so what it looks at is the module's."""

    asked = threading.Event()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return Interruption.asked.is_set()


def interruptible(sweep: Callable[[], T]) -> T:
    """Run a function that calls `run_trials` in a thread, and at Ctrl-C let it end what it does: every run has the state of its last epoch.

    In the main thread Tune would take Ctrl-C for itself, and say nothing of it.
    """
    Interruption.asked.clear()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(sweep)
        try:
            return future.result()
        except (KeyboardInterrupt, SystemExit):  # the latter is what Ray makes of SIGTERM, by which `ray job stop` asks
            Interruption.asked.set()
            wait([future], timeout=PATIENCE_S)
            raise
        finally:
            if Interruption.asked.is_set():
                ray.shutdown()


class Keeper(ray.tune.Callback):
    """Keeps the ledger while Tune runs, and says in lines what happens."""

    def __init__(self, ledger: Ledger, work: Work, halving: Halving | None) -> None:
        self.ledger, self.work, self.halving = ledger, work, halving
        self.histories: dict[str, list[dict[str, Any]]] = {}
        self.spoke = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        cell = self.work.cell_of(_settings(trial))
        out = self.work.here / cell.config.out
        self.histories[trial.trial_id] = []
        with contextlib.suppress(UserError):  # there is none, or it is damaged, which the run itself will say
            self.histories[trial.trial_id] = read_history(out)
        self.ledger.status.running[cell.name] = len(self.histories[trial.trial_id])
        self.ledger.status.epochs[cell.name] = cell.config.epochs
        self.ledger.write_status()

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        name, history = self.work.cell_of(_settings(trial)).name, self.histories[trial.trial_id]
        if "train_loss" in result and result["epoch"] > len(history):
            keys = ("epoch", "train_loss", "train_accuracy", "validation_loss", METRIC, "seconds")
            history.append({k: result[k] for k in keys})
        self.ledger.status.running[name] = len(history)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        settings = _settings(trial)
        cell, history = self.work.cell_of(settings), self.histories.pop(trial.trial_id, [])
        self.ledger.status.running.pop(cell.name, None)
        result = self.work.here / cell.config.out / "result.json"
        diverged, refused = ((trial.last_result or {}).get(name) for name in ("diverged", "refused"))
        if result.exists():
            row = read_json(result)
            self.ledger.add(row)
            self.say(f"{cell.name} done: {headline(row)}")
        elif diverged:
            self.ledger.conclude(cell.name, unfinished_row(self.work, cell, settings, history, "diverged") | {"error": diverged})
            self.say(f"{cell.name} diverged: {diverged}")
        elif refused:
            self.ledger.status.failures[cell.name] = {"tries": 1, "error": refused}
            self.say(f"{cell.name} FAILED: {refused}")
        elif self.halving is not None and trial.trial_id in self.halving.stopped:
            row = unfinished_row(self.work, cell, settings, history, "pruned")
            self.ledger.conclude(cell.name, row)
            self.say(f"{cell.name} stopped after epoch {len(history)}: {headline(row)}, behind the others")
        self.ledger.write_status()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        name = self.work.cell_of(_settings(trial)).name
        error = _last_line(trial)
        self.ledger.status.running.pop(name, None)
        self.ledger.status.failures[name] = {"tries": TRIES, "error": error}
        self.say(f"{name} FAILED {TRIES} times: {error}")
        self.ledger.write_status()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.say(f"{self.work.cell_of(_settings(trial)).name} failed and is tried again: {_last_line(trial)}", "")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        status = self.ledger.status
        if time.time() - status.updated > 10:
            self.ledger.write_status()
        if time.monotonic() - self.spoke > SAY_S and status.running:
            self.say(", ".join(f"{name} at epoch {n} of {status.epochs[name]}" for name, n in sorted(status.running.items())))

    def say(self, line: str, end: str | None = None) -> None:
        """A line with how far all is."""
        status, rows = self.ledger.status, self.ledger.rows
        left, done = remaining_seconds(status, rows), len(status.done(rows))
        end = f" ({done} of {status.total}{f', {duration(left)} left' if left else ''})" if end is None else end
        print(f"sweep: {line}{end}", flush=True)
        self.spoke = time.monotonic()


def headline(row: Mapping[str, Any]) -> str:
    """The accuracies of a row in words."""
    validation = f"validation {row['history'][-1][METRIC]:.1%}" if row["history"] else "no epoch"
    return f"{validation}, test {row['test']['accuracy']:.1%}" if "test" in row else validation


def _settings(trial: Trial) -> Settings:
    """What Tune gave a trial."""
    return {k: v for k, v in trial.config.items()}


def _last_line(trial: Trial) -> str:
    """The last line of a trial's last error, which says what went wrong."""
    try:
        text = Path(trial.error_file or "").read_text().strip()
    except OSError:
        text = ""
    if "OutOfMemoryError" in text:  # Ray's last line is its manual
        return "its process was killed because the node had too little memory; free some, or run fewer at a time"
    lines = text.splitlines()
    return lines[-1].strip() if lines else "unknown, its process is gone"


def unfinished_row(work: Work, cell: Cell, settings: Settings, history: list[dict[str, Any]], state: str) -> dict[str, Any]:
    """The row of a run that ended before its last epoch, without figures of a network."""
    config = cell.config
    made = {"job": "distill", "name": cell.label, "arm": cell.label, "content": config.content, "recipe": config.recipe, "cut": config.cut}
    made |= {"seed": config.seed, "config": dataclasses.asdict(config), "history": history}
    made |= {"cell": cell.name, "share": config.share, "state": state, "settings": settings}
    return made | {"provenance": runs.provenance(work.command, config.seed, runs.now())}


def print_estimate(todo: list[Cell], runs_per_gpu: int, price: float | None) -> None:
    """Print runs, time and cost, from steps measured on as much of the cluster as a run gets."""
    if not todo:
        return
    resources, at_once = slots(runs_per_gpu)
    store = Store.open(todo[0].config.store)

    def measured(config: DistillConfig, teacher: ImageClassifier | None) -> estimate.Speed:
        return estimate.measure(config, teacher, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    kinds = {estimate.kind_of(cell.config): cell.config for cell in todo}
    task = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))(measured)
    asked = [task.remote(for_workers(one), open_teacher_of(one)) for one in kinds.values()]
    speeds = dict(zip(kinds, ray.get(asked), strict=True))
    gpus = int(ray.cluster_resources().get("GPU", 0))
    print("\n".join(estimate.lines(todo, speeds, store, at_once, gpus or at_once, "GPU" if gpus else "processor", price)), flush=True)


def slots(runs_per_gpu: int, count: int | None = None) -> tuple[dict[str, float], int]:
    """What a run takes of the cluster, and how many go on at the same time.

    Args:
        count: of runs, if there may be so few of them that each gets more than one processor; or up to half as many again as there are
            processors, which then all begin at once instead of leaving processors idle in a second turn.
    """
    resources = ray.cluster_resources()
    cpus, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    if gpus:
        return {"GPU": 1 / runs_per_gpu, "CPU": min(1.0, cpus / (gpus * runs_per_gpu))}, gpus * runs_per_gpu
    if count and count <= cpus:
        node = max(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"])
        return {"CPU": float(max(1, min(int(node), cpus // count)))}, count
    if count and cpus < count <= 1.5 * cpus:
        return {"CPU": math.floor(100 * cpus / count) / 100}, count
    return {"CPU": 1.0}, cpus


def run_trials(
    ledger: Ledger,
    work: Work,
    params: Settings,
    resources: Mapping[str, float],
    *,
    seconds: float | None = None,
    search: Searcher | None = None,
    halving: Halving | None = None,
    samples: int = 1,
    at_once: int | None = None,
) -> None:
    """Run what Tune says until all is done, or until the time is up.

    Args:
        params: Tune's space: a grid, or nothing where `search` has its own.
        resources: of one run.
        seconds: after which all runs are stopped; their states are those of their last epochs.
        search, halving: propose settings, and stop what lags behind.
        samples: how many settings to propose.
        at_once: how many of them before the first results are known.
    """
    trainable = ray.tune.with_parameters(train_cell, work=work)
    ray.tune.Tuner(
        ray.tune.with_resources(trainable, dict(resources)),
        param_space=params,
        tune_config=ray.tune.TuneConfig(
            search_alg=search,
            scheduler=halving,
            num_samples=samples,
            max_concurrent_trials=at_once,
            time_budget_s=seconds,
            reuse_actors=False,  # a process that has had one run keeps gigabytes of it: torch's threads come and go with their memory
            trial_dirname_creator=lambda trial: work.cell_of(_settings(trial)).name,
        ),
        run_config=ray.tune.RunConfig(
            name=datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S"),
            storage_path=str(ledger.root.resolve() / "tune"),
            failure_config=ray.tune.FailureConfig(max_failures=TRIES - 1),
            callbacks=[Keeper(ledger, work, halving), *mlflow_logger(ledger.root.name)],
            stop=Interruption(),
            verbose=0,
        ),
    ).fit()


def persist(attempt: Callable[[], None]) -> None:
    """Run Tune, and again for what is left where a run was killed for its memory, which Tune 2.60 takes for its own end.

    Raises:
        UserError: it happened too often.
    """
    for n in range(1, TRIES + 1):
        try:
            return attempt()
        except RuntimeError as error:
            if not isinstance(error.__cause__ or error.__context__, ray.exceptions.OutOfMemoryError):
                raise
            print(f"sweep: a run was killed because the node has too little memory (time {n} of {TRIES})", flush=True)
        gc.collect()  # the controller's actors
    raise UserError("the nodes have too little memory for so many runs at a time; give Ray fewer processors, or --runs-per-gpu less")


def mlflow_logger(experiment: str) -> list[ray.tune.Callback]:
    """Tune's logger for MLflow, where it is installed and MLFLOW_TRACKING_URI says where to log."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or importlib.util.find_spec("mlflow") is None:
        return []
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return [MLflowLoggerCallback(tracking_uri=uri, experiment_name=experiment)]
