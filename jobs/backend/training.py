"""The training loop of teacher and student on Ray Train, and the run directory around it."""

import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import Checkpoint

from igkd.base import provenance, run_directory
from igkd.base.errors import printable
from igkd.evaluation.chance import chance_of, most_frequent, row_near_chance
from igkd.store import hold
from igkd.training.held_out import Unseen
from igkd.training.identity import judged_otherwise
from igkd.training.run import Trainer, finish_run
from igkd.training.task import Task
from jobs.backend.ingest import Stream
from jobs.backend.runtime import fetched, fit, start_ray
from jobs.backend.sentences import one_sentence

NOTHING_LEARNED = "train for more --epochs, or with another --learning-rate, before anything is built on it"


@one_sentence()
def train_worker(loop_config: dict[str, Any]) -> None:
    """One worker of a run: builds the task, resumes from the last checkpoint, and reports a checkpoint after every epoch."""
    logging.disable(logging.INFO)  # Ray Train logs at length what `progress` prints in one line
    task: Task = loop_config["task"]()
    if "unseen" in loop_config:
        task = dataclasses.replace(task, test=functools.partial(fetched, loop_config["unseen"]))
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()

    def progress(line: str) -> None:
        if rank == 0:
            print(printable(f"{loop_config['name']}: {line}"), flush=True)

    if loop_config.get("elastic"):
        progress(f"begins with {world} worker(s)")
    trainer = Trainer(task, ray.train.torch.prepare_model, rank, world, progress)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            trainer.load(Path(directory))
    feed = Stream(ray.train.get_dataset_shard("train"), task, trainer.device, rank, world) if task.train is None else None
    for history in trainer.epochs(feed):
        if rank != 0:
            ray.train.report(history[-1])
            continue
        if len(history) in task.keep_epochs:
            trainer.write_snapshot(Path(loop_config["out"]) / f"epoch-{len(history)}", f"{loop_config['name']}, epoch {len(history)}")
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary)
            trainer.save(directory)
            if trainer.finished:
                trainer.write_outcome(directory)
            ray.train.report(history[-1], checkpoint=Checkpoint.from_directory(directory))


def run_training(
    name: str,
    config: Any,
    task: Callable[[], Task],
    fingerprints: dict[str, str],
    made: dict[str, Any],
    stream: Callable[[], ray.data.Dataset] | None = None,
    unseen: Callable[[], Unseen | None] = lambda: None,
    teacher_parameters: int | None = None,
) -> dict[str, Any]:
    """Train in the directory `config.out`, or resume there, and write checkpoint and result.

    Args:
        name: the job's name, for messages and the result.
        config: the job's settings, with `out`, `seed` and `workers`.
        task: builds the task in every worker; local paths in it must be absolute.
        fingerprints: what identifies the run besides its settings.
        made: further entries of the result row.
        stream: makes the data set of training images, if the task does not have them in memory.
        unseen: reads the test images that the network is evaluated on at the end.
        teacher_parameters: number of parameters of a student's teacher.

    Returns:
        the result row, also in OUT/result.json; the network is OUT/model.safetensors and OUT/model.json.

    Raises:
        UserError: the directory belongs to another configuration, or another job is training there.
    """
    out, started = Path(config.out), provenance.now()
    finished = run_directory.claim(out, config, fingerprints)
    if finished is None:
        with hold(str(out)):
            finished = run_directory.claim(out, config, fingerprints)  # again: another job may have just ended
            if finished is None:
                loop_config = {"task": task, "name": made.get("name", name), "elastic": config.min_workers is not None}
                loop_config |= {"out": str(out.resolve())}
                found = unseen()  # read them before the first epoch, so that errors in them are found early
                if found is not None:
                    tell(found)
                    start_ray()
                    loop_config["unseen"] = ray.put(found)
                checkpoint = fit(train_worker, loop_config, out, config.workers, stream, config.min_workers)
                row = finish_run(name, config, out, checkpoint, provenance.command(), started, made, teacher_parameters)
                tell_outcome(name, row, out)
                return row
    print(f"{out} is already finished: {headline(finished)}", flush=True)
    for sentence in judged_otherwise([(finished, config)]):
        print(printable(sentence), flush=True)
    return finished


def tell(unseen: Unseen) -> None:
    """Print which test images cannot be used, and what the others will not say."""
    for sentence in (*unseen.left_out, *unseen.notes):
        print(printable(f"test images: {sentence}"), flush=True)


def tell_outcome(name: str, row: dict[str, Any], out: Path) -> None:
    """Print how a run ended, and whether its accuracy may be luck."""
    print(f"{name} finished: {headline(row)}, in {out}", flush=True)
    if row_near_chance(row):
        print(f"warning: that is near chance ({chance_of(row['classes'], row.get('test'))}): {NOTHING_LEARNED}", flush=True)


def headline(row: dict[str, Any]) -> str:
    """A run's accuracy as text, beside chance and, if that is known, its teacher's: on the test images, or on the validation split."""
    others = [f"its teacher {row['test']['teacher_accuracy']:.1%}"] if "teacher_accuracy" in row.get("test", {}) else []
    if "classes" in row:
        often = most_frequent(row.get("test", {}), row["classes"])
        others.append(f"chance {1 / row['classes']:.1%}")
        others += [] if often is None else [f"the most frequent class {often:.1%}"]
    beside = f" ({', '.join(others)})" if others else ""
    if "test" in row:
        return f"test accuracy {row['test']['accuracy']:.1%}{beside} on {row['test']['count']:,} images"
    return f"validation accuracy {row['history'][-1]['validation_accuracy']:.1%}{beside} on {row['images']['validation']:,} images"
