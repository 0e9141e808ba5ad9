"""A search for good settings: python -m jobs.tune --store URI --out DIR --trials 50 --until 07:00"""

import hashlib
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.distributions import BaseDistribution
from ray.tune.search.optuna import OptunaSearch

from igkd.base import provenance
from igkd.base.errors import UserError
from igkd.base.run_directory import read_object
from igkd.base.storage import absolute, check_writable, write_json
from igkd.base.time_limit import seconds_left
from igkd.config.command_line import parse
from igkd.config.distill import DistillConfig
from igkd.config.recipes import distill_config, recipe_file
from igkd.config.sweeps import TuneConfig
from igkd.evaluation.chance import chance_of, row_near_chance
from igkd.evaluation.progress import progress
from igkd.store import Store, hold
from igkd.sweeps.grid import Cell, make_cell
from igkd.sweeps.ledger import STATUS, Ledger, Row, Status, read_rows
from igkd.sweeps.space import inside, settings_of, space, tuned
from igkd.training.identity import decided, fingerprints, ingest_of
from igkd.training.student_data import check_student, open_store, open_teacher_of
from jobs.backend.cells import claim_search
from jobs.backend.estimates import print_estimate, slots
from jobs.backend.halving import METRIC, Halving, replay
from jobs.backend.one_trial import Settings, Work
from jobs.backend.runtime import begin_ray, run_job, start_ray
from jobs.backend.sweep_progress import conclude, interruptible
from jobs.backend.trials import persist, run_trials


def trial_cell(root: str, base: DistillConfig, settings: Settings) -> Cell:
    """The cell of a trial. Its name follows from its settings, so a proposal that comes again continues the run that it began."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    return make_cell(root, tuned(base, settings), f"trial-{digest}")


def unfinished(root: Path, ranges: dict[str, BaseDistribution]) -> list[Settings]:
    """The settings of runs that an earlier command began and did not finish."""
    begun = [path for path in sorted((root / "students").glob("*/config.json")) if not (path.parent / "result.json").exists()]
    try:
        return [settings_of(read_object(path), ranges) for path in begun]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"a config.json under {root / 'students'} is not of a trial of this search; choose another --out") from None


def accuracy(row: Row) -> float:
    """What the search maximises: validation accuracy after the last epoch; 0 if there was no epoch, or the run diverged."""
    return float(row["history"][-1][METRIC]) if row["history"] and row["state"] != "diverged" else 0.0


def make_search(config: TuneConfig, base: DistillConfig, rows: list[Row], begun: list[Settings]) -> OptunaSearch:
    """Optuna's TPE, told of all finished runs. It first proposes what was begun before, or in a new search the recipe itself."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = space(base)
    own = settings_of(vars(base), ranges)
    first = begun or ([own] if not rows and inside(own, ranges) else [])
    # After a restart it has another seed: its first proposals are random, and would be the same again.
    search = OptunaSearch(
        space=ranges, metric=METRIC, mode="max", seed=(config.seed + 1000 * len(rows)) % 2**32, points_to_evaluate=first or None
    )
    for row in rows:
        search.add_evaluated_point(row["settings"], accuracy(row))
    return search


def tune(config: TuneConfig) -> int:
    """Search until all trials are done or the time is up; gives the exit status, 1 if trials are missing that nobody stopped."""
    deadline = config.deadline(provenance.now())
    check_writable(Path(config.out) / STATUS)
    base = decided(base_of(config), Store.open(config.store))
    opened = open_store(base)
    check_student(base, opened)
    if ingest_of(base, opened) == "stream":
        raise UserError(f"{config.store} does not fit into memory, where a search keeps it; use a smaller one")
    begin_ray()
    open_teacher_of(base)
    if config.dry_run:
        start_ray()
        rows = read_rows(Path(config.out))
        print(f"{progress(rows, config.trials)}; ASHA will stop most of them early, so this is the most it takes", flush=True)
        print_estimate(
            [make_cell(config.out, base, f"trial {n}") for n in range(len(rows), config.trials)], config.runs_per_gpu, config.price
        )
        return 0
    claim_search(config, base)
    start_ray()
    return interruptible(partial(search, config, base, deadline))


def base_of(config: TuneConfig) -> DistillConfig:
    """The settings that all trials share. They have no test images, so that nothing is chosen by them."""
    given: dict[str, Any] = {"teacher": config.teacher, "epochs": config.epochs}
    given = {k: v for k, v in given.items() if v is not None}
    common = {"store": config.store, "out": config.out, "arm": config.arm, "student": config.student, "seed": config.seed}
    return distill_config(config.recipe, **common, **given)


def search(config: TuneConfig, base: DistillConfig, deadline: float | None) -> int:
    """Run the missing trials, then write the best settings and the report; gives the exit status."""
    root, (resources, at_once) = Path(config.out), slots(config.runs_per_gpu)
    found = fingerprints(base)
    work = Work(
        cell_of=partial(trial_cell, config.out, base),
        here=Path.cwd(),
        store=absolute(base.store),
        fingerprints={base.init: found},
        command=provenance.command(),
        teacher=ray.put(open_teacher_of(base)),
    )
    status = Status(
        kind="tuning", command=work.command, planned=[], total=config.trials, slots=at_once, began=time.time(), deadline=deadline
    )
    with hold(config.out):
        ledger = Ledger(root, status)
        print(f"sweep: {status.progress(ledger.rows)}; {at_once} at a time, in {config.out}", flush=True)

        def attempt() -> None:
            rows = list(ledger.rows)
            if len(rows) >= config.trials:
                return
            halving = Halving(base.epochs)
            replay(halving, rows)
            run_trials(
                ledger,
                work,
                make_search(config, base, rows, unfinished(root, space(base))),
                resources,
                seconds=seconds_left(deadline),
                halving=halving,
                samples=config.trials - len(rows),
                at_once=at_once,
            )

        try:
            persist(attempt)
        finally:
            ledger.close(lambda rows: len(rows) >= config.trials)
    write_best(root, base, ledger.rows, found["store_fingerprint"], work.command)
    return conclude(root)


def write_best(root: Path, base: DistillConfig, rows: list[Row], store_fingerprint: str, command: str) -> None:
    """Write OUT/best.json, the recipe of the best finished trial; none where no trial is above chance."""
    done = [row for row in rows if row["state"] == "done"]
    best = max(done, key=accuracy, default=None)
    if best is None or row_near_chance(best):
        (root / "best.json").unlink(missing_ok=True)
        said = "has finished" if best is None else f"is above chance, {chance_of(best['classes'])}"
        print(f"no trial {said}: there is no best one, and no {root / 'best.json'}", flush=True)
        return
    equals = sum(accuracy(row) == accuracy(best) for row in done)
    made = {"command": command, "trials": len(rows), "cell": best["cell"], METRIC: accuracy(best), "store_fingerprint": store_fingerprint}
    write_json(root / "best.json", recipe_file(tuned(base, best["settings"]), made))
    which = f"best: {best['cell']}" if equals == 1 else f"best: {equals} trials alike, of which {best['cell']} was the first"
    use = f"--arm {base.arm} --student {base.student} --recipe {root / 'best.json'}"
    print(f"{which}, validation {accuracy(best):.1%}; use it by {use}", flush=True)


def main() -> int:
    return tune(parse(TuneConfig, "python -m jobs.tune"))


if __name__ == "__main__":
    run_job(main)
