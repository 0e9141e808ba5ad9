"""Runs the cells of a grid that have no result yet, each in its own process."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.tune

from igkd.base import provenance, run_directory
from igkd.base.errors import UserError
from igkd.base.storage import absolute
from igkd.base.time_limit import seconds_left
from igkd.config.distill import DistillConfig
from igkd.config.sweeps import SearchConfig, TuneConfig
from igkd.store import Store, hold
from igkd.sweeps.grid import Cell
from igkd.sweeps.ledger import Kind, Ledger, Row, Status
from igkd.training.held_out import Unseen, unseen_by_student
from igkd.training.identity import fingerprints, identity, judged_otherwise
from igkd.training.student_checks import check_counts
from igkd.training.student_data import open_store, open_teacher_of
from jobs.backend.estimates import slots
from jobs.backend.halving import Halving, replay
from jobs.backend.one_trial import Work
from jobs.backend.runtime import start_ray
from jobs.backend.sweep_progress import interruptible
from jobs.backend.training import tell
from jobs.backend.trials import persist, run_trials


def look_up(found: dict[str, Cell], settings: dict[str, Any]) -> Cell:
    """The cell for the settings of a Tune trial."""
    return found[settings["cell"]]


def train_cells(
    grid: list[Cell],
    out: str,
    runs_per_gpu: int,
    deadline: float | None = None,
    page: str = "report.html",
    kind: Kind = "ablation",
    halving: Callable[[], Halving] | None = None,
) -> bool:
    """Run the cells that have no result yet, starting Ray if needed; returns whether all cells have a result now.

    Args:
        deadline: Unix time at which to stop; None for no limit.
        page: file name of the report.
        kind: the kind of sweep.
        halving: makes the scheduler that stops runs that fall behind; without it, all run to their end.

    Raises:
        UserError: a cell's directory belongs to a run of other settings.
    """
    claim(grid)
    start_ray()
    todo = sum(not (Path(cell.config.out) / "result.json").exists() for cell in grid)
    resources, at_once = slots(runs_per_gpu, todo)
    return interruptible(partial(run_cells, grid, out, resources, at_once, deadline, page, kind, halving))


def resident(grid: list[Cell], store: Store) -> list[Cell]:
    """The cells with their ingest set to resident, which is the only one that sweeps support.

    Raises:
        UserError: the store does not fit into memory.
    """
    if any(cell.config.ingest == "stream" for cell in grid):
        raise UserError(f"{store.uri} does not fit into memory, where sweeps keep it; use a smaller one, or jobs.distill")
    return grid


def check(grid: list[Cell]) -> None:
    """Check every cell before any run starts.

    Raises:
        UserError: an arm, a recipe, a teacher or test images do not fit the store, or it has too few images.
    """
    for cell in grid:
        store = open_store(cell.config)
    validation = store.column("validation")  # of all runs: they share a store
    for cell in grid:
        check_counts(cell.config, len(validation), int(validation.sum()))
    for one in {(cell.config.teacher, cell.config.objective.logits, cell.config.maps): cell.config for cell in grid}.values():
        open_teacher_of(one)
    unseen_by(grid)


def unseen_by(grid: list[Cell]) -> Unseen | None:
    """The test images for the runs without a result; None if there are no test images, or no such runs."""
    todo = [cell.config for cell in grid if not (Path(cell.config.out) / "result.json").exists()]
    return unseen_by_student(todo[0], Store.open(todo[0].store)) if todo else None


def claim(grid: list[Cell]) -> None:
    """Reserve the directories of all runs.

    Raises:
        UserError: one belongs to a run of other settings.
    """
    found = fingerprints_of(grid)
    for cell in grid:
        run_directory.claim(Path(cell.config.out), cell.config, identity(cell.config, found[cell.config.init]))


def fingerprints_of(grid: list[Cell]) -> dict[str | None, dict[str, str]]:
    """For each --init among the runs of a store, the values that identify them besides their settings."""
    return {init: fingerprints(config) for init, config in {cell.config.init: cell.config for cell in grid}.items()}


def claim_search(config: TuneConfig | SearchConfig, base: DistillConfig) -> None:
    """Reserve the directory of a search, with the logits that were decided on when it began: its store may get views later.

    Raises:
        UserError: it belongs to a search of other settings.
    """
    run_directory.claim(Path(config.out), config, identity(base, fingerprints(base)) | {"logits": base.logits})


def run_cells(
    grid: list[Cell],
    out: str,
    resources: dict[str, float],
    at_once: int,
    deadline: float | None,
    page: str,
    kind: Kind,
    halving: Callable[[], Halving] | None,
) -> bool:
    """Run the cells that have no result yet; returns whether all cells have a result now."""
    root, first = Path(out), grid[0].config
    unseen = unseen_by(grid)
    if unseen is not None:
        tell(unseen)
    work = Work(
        cell_of=partial(look_up, {cell.name: cell for cell in grid}), here=Path.cwd(), store=absolute(first.store),
        fingerprints=fingerprints_of(grid), command=provenance.command(), teacher=ray.put(open_teacher_of(teacher_of(grid))),
        unseen=None if unseen is None else ray.put(unseen),
    )  # fmt: skip
    names, epochs = [cell.name for cell in grid], {cell.name: cell.config.epochs for cell in grid}
    status = Status(
        command=work.command, planned=names, total=len(grid), slots=at_once, began=time.time(), deadline=deadline, epochs=epochs,
        page=page, kind=kind,
    )  # fmt: skip
    with hold(out):
        ledger = Ledger(root, status)

        def left() -> list[str]:
            done = {row["cell"] for row in ledger.rows}
            return [cell.name for cell in grid if cell.name not in done]

        def attempt() -> None:
            if todo := left():
                judge = None if halving is None else halving()
                if judge is not None:
                    replay(judge, ledger.rows)
                run_trials(ledger, work, {"cell": ray.tune.grid_search(todo)}, resources, seconds=seconds_left(deadline), halving=judge)

        print(f"sweep: {status.progress(ledger.rows)}; {at_once} at a time, in {out}", flush=True)
        say_what_is_judged_otherwise(grid, ledger.rows)
        try:
            persist(attempt)
        finally:
            finished = ledger.close(lambda rows: not left())
    return finished


def say_what_is_judged_otherwise(grid: list[Cell], rows: list[Row]) -> None:
    """Print a line if finished runs were evaluated with other test images, or other maps, than the present settings name."""
    configs = {cell.name: cell.config for cell in grid}
    if other := judged_otherwise((row, configs[row["cell"]]) for row in rows if row["cell"] in configs and row["state"] == "done"):
        print(f"sweep: {len(other)} of these are not judged as is asked now: {other[0]}", flush=True)


def teacher_of(grid: list[Cell]) -> DistillConfig:
    """The settings of a cell that names a teacher; of the first cell if none does."""
    return next((cell.config for cell in grid if cell.config.teacher is not None), grid[0].config)
