"""One training run as an object: the network and all that goes with it, from its last state to its result row.

`jobs.distill` and `jobs.teacher` drive one in every worker of a data-parallel run; a sweep drives many, one in each process.
"""

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from igkd import models, runs
from igkd.evaluate import evaluate
from igkd.feed import Feed, Resident
from igkd.files import read_json, write_json
from igkd.parallel import share_batch_norms
from igkd.tasks import Task, check_batch_size
from igkd.train import History, load_state, make_average, make_optimizer, save_state, train, unwrapped


class Trainer:
    """The state of one worker's run of a task."""

    def __init__(
        self,
        task: Task,
        prepare: Callable[[nn.Module], nn.Module],
        rank: int = 0,
        world: int = 1,
        progress: Callable[[str], None] = print,
    ) -> None:
        """Args:
        prepare: puts the network on its device, and wraps it where there are several workers.
        progress: is told a line now and then.

        Raises:
            UserError: the network cannot train on batches so small.
        """
        check_batch_size(task.spec, task.recipe)
        network = models.build(task.spec, task.seed).to(memory_format=torch.channels_last)
        self.task, self.rank, self.world, self.progress = task, rank, world, progress
        self.model = prepare(share_batch_norms(network) if world > 1 else network)
        self.device = next(self.model.parameters()).device
        self.optimizer = make_optimizer(self.model, task.recipe)
        self.average = make_average(unwrapped(self.model), task.recipe)
        self.teacher = None if task.teacher is None else task.teacher.to(self.device).eval()
        self.history: History = []

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote."""
        self.history = load_state(directory, unwrapped(self.model), self.optimizer, self.average)

    def save(self, directory: Path) -> None:
        """Write all that `load` needs, in one file that appears whole or not at all."""
        save_state(directory, unwrapped(self.model), self.optimizer, self.history, self.average)

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.task.recipe.epochs

    def epochs(self, feed: Feed | None = None) -> Iterator[History]:
        """Train what is left, epoch by epoch; gives the history after each. Without a feed, the task's own images are resident."""
        task = self.task
        for sentence in task.left_out:
            self.progress(sentence)
        if self.history:
            self.progress(f"going on after epoch {len(self.history)}")
        if feed is None:
            assert task.train is not None
            feed = Resident(task.train, task.recipe, task.objective, task.seed, self.device, self.rank, self.world)
        rows = train(
            self.model, feed, task.validation, task.recipe, task.objective,
            seed=task.seed, optimizer=self.optimizer, history=self.history, average=self.average, teacher=self.teacher,
            rank=self.rank, world=self.world, progress=self.progress,
        )  # fmt: skip
        for self.history in rows:
            yield self.history

    def write_outcome(self, directory: Path) -> None:
        """Write the finished network and its figures; here, and only here, the test images are read, if the task has any."""
        network, task = unwrapped(self.model) if self.average is None else self.average.module, self.task
        assert isinstance(network, models.Classifier)
        models.save(network, directory / "model", {})
        images = {"train": task.count, "validation": len(task.validation), "left_out": len(task.left_out)}
        outcome: dict[str, Any] = {"history": self.history, "images": images}
        if task.test is not None:
            finished = models.load(directory / "model").to(self.device)  # with torch's own batch normalisation
            samples, left_out = task.test()
            for sentence in left_out:
                self.progress(f"test images: {sentence}")
            figures = evaluate(finished, samples, teacher=self.teacher, maps=min(task.maps, len(samples)), progress=self.progress)
            outcome["test"] = figures | {"left_out": len(left_out)}
        write_json(directory / "outcome.json", outcome)


def finish_run(
    name: str, config: Any, out: Path, outcome: Path, command: str, started: datetime.datetime, made: Mapping[str, Any]
) -> dict[str, Any]:
    """Turn what `write_outcome` left into the result of a run.

    Args:
        name: of the job.
        config: the run's configuration, with `seed`.
        out: the run's directory.
        outcome: the directory that `write_outcome` was given.
        command: that made it, as typed.
        made: further entries of the row.

    Returns:
        the result row, also in OUT/result.json, which is written last; the network is OUT/model.safetensors and OUT/model.json.
    """
    model = models.load(outcome / "model")
    parameters = models.parameter_count(model)
    whole = models.parameter_count(models.Classifier(model.spec.whole))
    row = {
        "job": name,
        "name": name,
        "cut": model.spec.cut,
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        **read_json(outcome / "outcome.json"),
        "parameters": parameters,
        "multiply_adds": models.multiply_adds(model),
        "compression": round(whole / parameters, 2),
        "provenance": runs.provenance(command, config.seed, started),
        **made,
    }
    models.save(model, out, {k: row[k] for k in ("job", "config", "images", "history", "test", "provenance") if k in row})
    write_json(out / "result.json", row)
    return row
