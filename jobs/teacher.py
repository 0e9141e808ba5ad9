"""Train a teacher: python -m jobs.teacher --images SRC --out DIR"""

import dataclasses
import functools
from typing import Any

from igkd.base.errors import printable
from igkd.base.storage import absolute
from igkd.config.command_line import parse
from igkd.config.teacher import TeacherConfig
from igkd.images.open import open_images, tell
from igkd.networks.initial import init_hash
from igkd.networks.open import DEFAULT
from igkd.training.held_out import unseen_by_teacher
from igkd.training.teacher_data import check_teacher, start_of, teacher_line, teacher_task
from jobs.backend.runtime import begin_ray, in_thread, run_job
from jobs.backend.training import run_training


def train_teacher(config: TeacherConfig) -> dict[str, Any]:
    """Train or go on training; gives the result row."""
    source = open_images(config.images)
    tell(source)
    print(printable(f"teacher: {teacher_line(config, source.checked_labels('train'), source.classes)}"), flush=True)
    begin_ray(config.out)
    check_teacher(config)
    fingerprints, init = {"images_fingerprint": source.fingerprint("train")}, config.init
    if init is not None and (start := start_of(config, len(source.classes))) is not None:
        print(f"teacher: {start.line}", flush=True)
        fingerprints["init_sha256"] = init_hash(init)
        init = init if init == DEFAULT else absolute(init)
    task = functools.partial(teacher_task, dataclasses.replace(config, images=str(source), init=init))
    return run_training("teacher", config, task, fingerprints, {}, unseen=functools.partial(unseen_by_teacher, config))


def main() -> None:
    config = parse(TeacherConfig, "python -m jobs.teacher")
    in_thread(lambda: train_teacher(config))


if __name__ == "__main__":
    run_job(main)
