"""One run of a sweep, in its own process: resumes from the last state and writes the result."""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import ray.tune
import torch
from numpy.typing import NDArray

from igkd.base import provenance, run_directory
from igkd.base.errors import UserError
from igkd.base.run_directory import STATE
from igkd.images.samples import Samples
from igkd.networks.network import Classifier
from igkd.store import Store
from igkd.sweeps.grid import Cell
from igkd.training.held_out import Unseen
from igkd.training.identity import identity
from igkd.training.loop import Diverged
from igkd.training.run import Trainer, finish_run
from igkd.training.student_data import distill_task, for_workers
from jobs.backend.halving import METRIC
from jobs.backend.runtime import fetched

TRIES = 3
Settings = dict[str, Any]
T = TypeVar("T")
CellOf = Callable[[Settings], Cell]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What all runs of a sweep have in common; small, since it is sent to every process."""

    cell_of: CellOf
    """Maps the settings of a Tune trial to the cell that they stand for."""
    here: Path
    """The driver's working directory, to which relative paths in a cell refer."""
    store: str
    """Absolute URI of the store."""
    fingerprints: dict[str | None, dict[str, str]]
    """For each --init among the runs, the values that identify them besides their settings."""
    command: str
    """The sweep's command line, as the user typed it."""
    teacher: ray.ObjectRef[Classifier | None]
    unseen: ray.ObjectRef[Unseen] | None = None
    """The test images that networks are evaluated on at the end; None if there are none."""


@functools.lru_cache(maxsize=1)
def stored_samples(uri: str, fingerprint: str, views: bool) -> tuple[Samples, NDArray[np.bool_]]:
    """All rows of a store, decoded; kept for further runs in this process."""
    return Store.open(uri).samples(views=views)


def train_cell(settings: Settings, work: Work) -> None:
    """One run, called by Tune. After an error Tune tries it again, but not after a UserError, which would come again."""
    try:
        run_cell(settings, work)
    except UserError as error:
        ended = "diverged" if isinstance(error, Diverged) else "refused"
        ray.tune.report({METRIC: 0.0, "epoch": work.cell_of(settings).config.epochs, ended: str(error)})


def run_cell(settings: Settings, work: Work) -> None:
    """One run: resumes from the state in its directory, reports every epoch to Tune, and writes its result."""
    cell = work.cell_of(settings)
    config, out, started = cell.config, work.here / cell.config.out, provenance.now()
    fingerprints = work.fingerprints[config.init]
    finished = run_directory.claim(out, config, identity(config, fingerprints))
    if finished is not None:  # the run had finished, but its last report was lost
        ray.tune.report(finished["history"][-1])
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = for_workers(dataclasses.replace(config, store=work.store))
    rows = stored_samples(work.store, fingerprints["store_fingerprint"], config.which_logits == "views")
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
    made: Settings = {"name": cell.label, "arm": config.arm, "content": config.content, "recipe": config.recipe, "without": cell.without}
    made |= {"cell": cell.name, "share": config.share, "state": "done", "settings": settings}
    parameters = Store.open(work.store).plan.teacher_parameters
    finish_run("distill", config, out, out / "outcome", work.command, started, made, parameters)
    shutil.rmtree(out / "outcome")
    (out / STATE).unlink(missing_ok=True)
    ray.tune.report(trainer.history[-1])


def unfinished_row(work: Work, cell: Cell, settings: Settings, history: list[dict[str, Any]], state: str) -> dict[str, Any]:
    """The row of a run that ended before its last epoch; it has no figures of a trained network."""
    config = cell.config
    made: dict[str, Any] = {
        "job": "distill",
        "name": cell.label,
        "arm": config.arm,
        "without": cell.without,
        "content": config.content,
        "recipe": config.recipe,
        "network": config.student,
    }
    made |= {"seed": config.seed, "config": dataclasses.asdict(config), "history": history}
    made |= {"cell": cell.name, "share": config.share, "state": state, "settings": settings}
    return made | {"provenance": provenance.provenance(work.command, config.seed, provenance.now())}
