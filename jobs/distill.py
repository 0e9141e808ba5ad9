"""Distil one student from a store: python -m jobs.distill --store URI --test-images SRC --arm kd+ig --out DIR"""

import dataclasses
import functools
from typing import Any

from igkd.config import DistillConfig
from igkd.recipes import parse_distill
from igkd.tasks import check_student, distill_task, fingerprints, ingest_of, open_store, open_teacher_of, places
from jobs.ingest import training_dataset
from jobs.runtime import in_thread, run_job
from jobs.training import run_training


def distill(config: DistillConfig) -> dict[str, Any]:
    """Train a student, or go on training; gives the result row."""
    store, teacher = open_store(config), open_teacher_of(config)
    identity = fingerprints(config)
    check_student(config, store)
    ingest = ingest_of(config, store)  # for all workers, whose nodes may have another memory
    resolved = dataclasses.replace(config, **places(config), ingest=ingest)
    task = functools.partial(distill_task, resolved, teacher)
    stream = functools.partial(training_dataset, resolved, store) if ingest == "stream" else None
    made = {"name": config.label, "arm": config.label, "content": config.content, "recipe": config.recipe}
    return run_training("distill", config, task, identity, made, stream)


def main() -> None:
    config = parse_distill("jobs.distill")
    in_thread(lambda: distill(config))


if __name__ == "__main__":
    run_job(main)
