"""Distil one student from a store: python -m jobs.distill --store URI --test-images SRC --arm kd+ig --out DIR"""

import functools
from typing import Any

from igkd.base.errors import printable
from igkd.config.distill import DistillConfig
from igkd.config.recipes import parse_distill
from igkd.store import Store
from igkd.training.held_out import unseen_by_student
from igkd.training.identity import decided, fingerprints, identity
from igkd.training.student_data import check_student, distill_task, for_workers, open_store, open_teacher_of, start_of, student_line
from jobs.backend.ingest import training_dataset
from jobs.backend.runtime import begin_ray, in_thread, run_job
from jobs.backend.training import run_training


def distill(config: DistillConfig) -> dict[str, Any]:
    """Train a student, or go on training; gives the result row."""
    config = decided(config, Store.open(config.store))
    store, teacher = open_store(config), open_teacher_of(config)
    print(printable(f"distill: {student_line(config, store)}"), flush=True)
    begin_ray(config.out)
    start = start_of(config, store.plan)
    if start is not None:
        print(f"distill: {start.line}", flush=True)
    check_student(config, store)
    resolved = for_workers(config)
    task = functools.partial(distill_task, resolved, teacher)
    stream = functools.partial(training_dataset, resolved, store) if config.ingest == "stream" else None
    made = {"name": config.label, "arm": config.arm, "content": config.content, "recipe": config.recipe}
    unseen = functools.partial(unseen_by_student, config, store)
    found = identity(config, fingerprints(config))
    return run_training("distill", config, task, found, made, stream, unseen, store.plan.teacher_parameters)


def main() -> None:
    config = parse_distill("python -m jobs.distill")
    in_thread(lambda: distill(config))


if __name__ == "__main__":
    run_job(main)
