"""The training loop of teacher and student on Ray Train, and the run directory around it."""

import dataclasses
import datetime
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint
from torch import nn

from igkd import models, runs
from igkd.evaluate import evaluate
from igkd.feed import Feed, Resident
from igkd.files import read_json, write_json
from igkd.parallel import share_batch_norms
from igkd.tasks import Task
from igkd.train import load_state, make_average, make_optimizer, save_state, train, unwrapped
from jobs.ingest import Stream
from jobs.runtime import fit


def train_worker(loop_config: dict[str, Any]) -> None:
    """One worker of a run: build the task, go on from the last checkpoint, report every epoch with a checkpoint."""
    logging.disable(logging.INFO)  # Ray Train says in many words what `progress` says in few
    task: Task = loop_config["task"]()
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    network = models.build(task.spec, task.seed).to(memory_format=torch.channels_last)
    model = ray.train.torch.prepare_model(share_batch_norms(network) if world > 1 else network)
    device = next(model.parameters()).device
    optimizer, average = make_optimizer(model, task.recipe), make_average(unwrapped(model), task.recipe)
    teacher = None if task.teacher is None else task.teacher.to(device).eval()
    history: list[dict[str, Any]] = []
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            history = load_state(Path(directory), unwrapped(model), optimizer, average)

    def progress(line: str) -> None:
        if rank == 0:
            print(f"{loop_config['name']}: {line}", flush=True)

    for sentence in task.left_out:
        progress(sentence)
    if history:
        progress(f"going on after epoch {len(history)}")
    feed: Feed
    if task.train is None:
        feed = Stream(ray.train.get_dataset_shard("train"), task, device, rank, world)
    else:
        feed = Resident(task.train, task.recipe, task.objective, task.seed, device, rank, world)
    rows = train(
        model, feed, task.validation, task.recipe, task.objective,
        seed=task.seed, optimizer=optimizer, history=history, average=average, teacher=teacher,
        rank=rank, world=world, progress=progress,
    )  # fmt: skip
    for history in rows:
        if rank != 0:
            ray.train.report(history[-1])
            continue
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary)
            save_state(directory, unwrapped(model), optimizer, history, average)
            if len(history) == task.recipe.epochs:
                write_outcome(directory, unwrapped(model) if average is None else average.module, history, task, teacher, progress)
            ray.train.report(history[-1], checkpoint=Checkpoint.from_directory(directory))


def write_outcome(
    directory: Path,
    network: nn.Module,
    history: list[dict[str, Any]],
    task: Task,
    teacher: models.ImageClassifier | None,
    progress: Callable[[str], None],
) -> None:
    """Add the finished network and its figures to the last checkpoint; here, and only here, the test images are read."""
    assert isinstance(network, models.Classifier)
    models.save(network, directory / "model", {})
    finished = models.load(directory / "model").to(next(network.parameters()).device)  # with torch's own batch normalisation
    samples, left_out = task.test()
    for sentence in left_out:
        progress(f"test images: {sentence}")
    test = evaluate(finished, samples, teacher=teacher, maps=min(task.maps, len(samples))) | {"left_out": len(left_out)}
    images = {"train": task.count, "validation": len(task.validation), "left_out": len(task.left_out)}
    write_json(directory / "outcome.json", {"history": history, "test": test, "images": images})


def run_training(
    name: str,
    config: Any,
    task: Callable[[], Task],
    fingerprints: dict[str, str],
    made: dict[str, Any],
    runs_at_once: int = 1,
    stream: Callable[[], ray.data.Dataset] | None = None,
) -> dict[str, Any]:
    """Train under `config.out`, or go on there, and write checkpoint and result.

    Args:
        name: of the job, for messages and in the result.
        config: its configuration, with `out`, `seed` and `workers`.
        task: builds what to train on, in every worker; local paths in it must be absolute.
        fingerprints: what identifies the run besides its configuration.
        made: further entries of the result row.
        runs_at_once: runs that share the cluster with this one, itself included.
        stream: makes the data set of training images, where the task has none in memory.

    Returns:
        the result row, also in OUT/result.json; the network is OUT/model.safetensors and OUT/model.json.
    """
    out, started = Path(config.out), runs.now()
    finished = runs.claim(out, config, fingerprints)
    if finished is not None:
        print(f"{out} is already finished: test accuracy {finished['test']['accuracy']:.1%}", flush=True)
        return finished
    checkpoint = fit(train_worker, {"task": task, "name": made.get("name", name)}, out, config.workers, runs_at_once, stream)
    outcome = read_json(checkpoint / "outcome.json")
    row = result_row(name, config, outcome, started, models.load(checkpoint / "model")) | made
    models.save(models.load(checkpoint / "model"), out, {k: row[k] for k in ("job", "config", "images", "history", "test", "provenance")})
    write_json(out / "result.json", row)
    print(f"{name} finished: test accuracy {row['test']['accuracy']:.1%} on {row['test']['count']} images, in {out}", flush=True)
    return row


def result_row(name: str, config: Any, outcome: dict[str, Any], started: datetime.datetime, model: models.Classifier) -> dict[str, Any]:
    """One result as a row of data."""
    parameters = models.parameter_count(model)
    whole = models.parameter_count(models.Classifier(dataclasses.replace(model.spec, cut=0)))
    return {
        "job": name,
        "name": name,
        "cut": model.spec.cut,
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        **outcome,
        "parameters": parameters,
        "multiply_adds": models.multiply_adds(model),
        "compression": round(whole / parameters, 2),
        "provenance": runs.provenance(runs.command(), config.seed, started),
    }
