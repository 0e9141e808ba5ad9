"""Train a teacher: python -m jobs.teacher --images SRC --out DIR"""

import dataclasses
import functools
from typing import Any

from igkd.config.command_line import parse
from igkd.config.teacher import TeacherConfig
from igkd.images.open import open_images, tell
from igkd.training.held_out import unseen_by_teacher
from igkd.training.teacher_data import check_teacher, teacher_task
from jobs.backend.runtime import in_thread, run_job
from jobs.backend.training import run_training


def train_teacher(config: TeacherConfig) -> dict[str, Any]:
    """Train or go on training; gives the result row."""
    source = open_images(config.images)
    tell(source)
    check_teacher(config)
    task = functools.partial(teacher_task, dataclasses.replace(config, images=str(source)))
    fingerprints = {"images_fingerprint": source.fingerprint("train")}
    return run_training("teacher", config, task, fingerprints, {}, unseen=functools.partial(unseen_by_teacher, config))


def main() -> None:
    config = parse(TeacherConfig, "python -m jobs.teacher")
    in_thread(lambda: train_teacher(config))


if __name__ == "__main__":
    run_job(main)
