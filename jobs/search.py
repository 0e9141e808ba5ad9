"""A search for a fast student: python -m jobs.search --store URI --teacher DIR --out DIR --budget 8 --candidates 24 --trials 8"""

import dataclasses
from functools import partial
from pathlib import Path

from igkd.base import provenance
from igkd.base.errors import UserError
from igkd.base.storage import check_writable, write_json
from igkd.config.command_line import parse
from igkd.config.distill import DistillConfig
from igkd.config.recipes import distill_config, recipe_file
from igkd.config.sweeps import SearchConfig
from igkd.evaluation.chance import chance_of, row_near_chance
from igkd.evaluation.speed import Measured
from igkd.networks.families import student_name
from igkd.networks.network import Classifier, NetworkSpec, parameter_count
from igkd.networks.open import open_teacher
from igkd.report.pareto_page import best_row
from igkd.store import Store, hold
from igkd.sweeps import candidates
from igkd.sweeps.grid import Cell, make_cell
from igkd.sweeps.ledger import STATUS, read_rows
from igkd.sweeps.speed_search import measured_latencies, within_budget
from igkd.training.identity import decided
from jobs.backend.cells import check, claim_search, resident, train_cells
from jobs.backend.estimates import print_estimate
from jobs.backend.halving import METRIC, Halving
from jobs.backend.runtime import run_job, start_ray
from jobs.backend.sweep_progress import conclude


def base_of(config: SearchConfig) -> DistillConfig:
    """The settings of the student to compare with; the others differ in their network. Without test images, since those choose nothing."""
    common = {
        "store": config.store,
        "out": config.out,
        "arm": config.arm,
        "student": config.student,
        "seed": config.seed,
        "teacher": config.teacher,
    }
    return distill_config(config.recipe, **common, **({} if config.epochs is None else {"epochs": config.epochs}))


def specs_of(config: SearchConfig, store: Store) -> list[NetworkSpec]:
    """The networks to time: the student to compare with, then the candidates. All normalise pixels as the teacher does: it costs time.

    Raises:
        UserError: fewer candidates than asked for exist, or the networks that are named cannot be candidates.
    """
    plan, teacher = store.plan, open_teacher(config.teacher)[0].spec
    name = student_name(config.student, plan.teacher_network, plan.image_shape)
    student = NetworkSpec(name=name, classes=plan.classes, image_shape=plan.image_shape, mean=teacher.mean, std=teacher.std)
    limit = config.parameters if config.parameters is not None else parameter_count(Classifier(student))
    if config.students is None:
        found = candidates.candidates(limit, config.candidates, config.seed, len(plan.classes), plan.image_shape)
        return [student, *(dataclasses.replace(student, name=f"lean:{one}") for one in found)]
    names = dict.fromkeys(student_name(one, plan.teacher_network, plan.image_shape) for one in config.students)
    specs = [dataclasses.replace(student, name=one) for one in names if one != student.name]
    large = [spec.name for spec in specs if config.parameters is not None and parameter_count(Classifier(spec)) > limit]
    if large or not specs:
        raise UserError(
            f"{', '.join(large)} has more than --parameters {limit:,}: leave it out of --students, or raise --parameters"
            if large
            else f"--students must name other networks than --student {student.name}, with which they are compared"
        )
    return [student, *specs]


def cells_of(config: SearchConfig, base: DistillConfig, chosen: list[Measured]) -> list[Cell]:
    """The runs of the student to compare with, and of the candidates."""
    students = [base, *(dataclasses.replace(base, student=one.network) for one in chosen)]
    return [make_cell(config.out, student) for student in students]


def search(config: SearchConfig) -> int:
    """Time the candidates, train the most promising ones, and report; gives the exit status, 1 if runs failed.

    Raises:
        UserError: settings, store and teacher do not fit; or no candidate is fast enough.
    """
    deadline = config.deadline(provenance.now())
    check_writable(Path(config.out) / STATUS)
    store, root = Store.open(config.store), Path(config.out)
    base = decided(base_of(config), store)
    specs = specs_of(config, store)
    base = resident([make_cell(config.out, base)], store)[0].config
    tried = specs[:2] if config.students is None else specs  # random candidates are alike, named ones may be anyone's
    check([make_cell(config.out, dataclasses.replace(base, student=one.name)) for one in tried])
    if config.dry_run:
        start_ray()
        print(f"{len(specs)} networks to time, and at most {config.trials + 1} to train: the largest candidates, if they are fast enough")
        largest = sorted(specs[1:], key=lambda spec: -parameter_count(Classifier(spec)))[: config.trials]
        students = [base, *(dataclasses.replace(base, student=spec.name) for spec in largest)]
        print_estimate([make_cell(config.out, one) for one in students], config.runs_per_gpu, config.price)
        return 0
    claim_search(config, base)
    with hold(config.out):  # before Ray is started: the machine is as quiet as it can be
        latencies = measured_latencies(root, specs, config.teacher, store, config.rounds, config.budget)
    wanted = {spec.name for spec in specs[1:]}  # others may be there, of an earlier command with more candidates
    chosen = within_budget([one for one in latencies.measured if one.network in wanted], config.budget, config.trials)
    grid = cells_of(config, base, chosen)
    # The first student is there to compare with, and runs to its end. Those that begin slowly have a third of the epochs to catch up.
    halving = partial(Halving, base.epochs, frozenset({grid[0].name}), 3)
    train_cells(grid, config.out, config.runs_per_gpu, deadline, kind="search", halving=halving)
    write_best(config, grid, chosen, store.fingerprint())
    return conclude(root)


def write_best(config: SearchConfig, grid: list[Cell], chosen: list[Measured], store_fingerprint: str) -> None:
    """Write OUT/best.json, the recipe of the most accurate student within the budget; none where that one is near chance."""
    root, cells = Path(config.out), {cell.name: cell for cell in grid}
    rows = [row for row in read_rows(root) if row["cell"] in cells]  # others are of an earlier budget
    best = best_row(rows, {one.network: one.times_as_fast for one in chosen})
    if best is None or row_near_chance(best):
        (root / "best.json").unlink(missing_ok=True)  # of an earlier budget
    if best is None:
        return
    if row_near_chance(best):
        print(f"no student is above chance, {chance_of(best['classes'])}: there is no best one, and no {root / 'best.json'}", flush=True)
        return
    student = cells[best["cell"]].config
    measured = next(one for one in chosen if one.network == student.student)
    accuracy = best["history"][-1][METRIC]
    made = {
        "command": provenance.command(),
        "trials": len(rows),
        "cell": best["cell"],
        METRIC: accuracy,
        "store_fingerprint": store_fingerprint,
    }
    made |= {"machine": provenance.machine(), "times_as_fast": measured.times_as_fast, "budget": config.budget}
    write_json(root / "best.json", recipe_file(student, made) | {"student": student.student})
    print(
        f"best: {student.student}, validation {accuracy:.1%}, {measured.times_as_fast:.1f} times as fast as the teacher; "
        f"use it by --arm {config.arm} --recipe {root / 'best.json'}",
        flush=True,
    )


def main() -> int:
    return search(parse(SearchConfig, "python -m jobs.search"))


if __name__ == "__main__":
    run_job(main)
