"""One training run as an object, from its last saved state to its result row.

`jobs.distill` and `jobs.teacher` have one in every worker of a data-parallel run; a sweep has one in each of its processes.
"""

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from igkd.base import provenance
from igkd.base.choices import Precision
from igkd.base.storage import read_json, write_json
from igkd.evaluation.evaluate import evaluate
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, build, multiply_adds, parameter_count
from igkd.networks.weights import load_into
from igkd.training.batch_norm import share_batch_norms
from igkd.training.batches import Feed, Resident
from igkd.training.execution import Compiled, choose_precision, multiplies_in_bfloat16
from igkd.training.loop import Learner, make_average, train
from igkd.training.optimizer import make_optimizer, unwrapped
from igkd.training.state import History, load_state, read_decided, save_state
from igkd.training.task import Task, check_batch_size
from igkd.training.terms import terms_of


class Trainer:
    """One worker's run of a task: network, optimizer, history."""

    def __init__(
        self,
        task: Task,
        prepare: Callable[[nn.Module], nn.Module],
        rank: int = 0,
        world: int = 1,
        progress: Callable[[str], None] = print,
    ) -> None:
        """Args:
        prepare: moves the network to its device, and wraps it if there are several workers.
        progress: called with lines of progress.

        Raises:
            UserError: the batches are too small for this network.
        """
        check_batch_size(task.spec, task.optimisation)
        network = build(task.spec, task.seed).to(memory_format=torch.channels_last)
        if task.initial is not None:
            load_into(network.network, task.initial, "--init")
        self.task, self.rank, self.world, self.progress = task, rank, world, progress
        self.model = prepare(share_batch_norms(network) if world > 1 else network)
        self.device = next(self.model.parameters()).device
        with torch.random.fork_rng(devices=[]):  # the seed fixes what terms begin with, too; all workers begin alike
            torch.manual_seed(task.seed)
            self.terms = terms_of(task.objective, task.optimisation).to(self.device)
        self.optimizer = make_optimizer(self.model, task.optimisation, self.terms)
        self.average = make_average(unwrapped(self.model), task.optimisation)
        self.teacher = None if task.teacher is None else task.teacher.to(self.device).eval()
        self.history: History = []
        # The first worker decides, and a resumed run keeps the choice: another rounding would make it another run.
        self.precision: Precision = _agreed(choose_precision(task.optimisation.precision, self.device), world)
        self.compiled = None
        if task.optimisation.compile and world > 1:
            progress("goes on without torch.compile, which is for one worker")
        elif task.optimisation.compile:
            self.compiled = Compiled(self.model, progress)

    def load(self, directory: Path) -> None:
        """Resume from the state that `save` wrote, in the precision with which the run started."""
        decided = read_decided(directory)
        self.history = load_state(directory, unwrapped(self.model), self.optimizer, self.average, self.terms)
        self.precision = "bfloat16" if decided.get("precision") == "bfloat16" else "float32"

    def save(self, directory: Path) -> None:
        """Write all that `load` needs, in one file, atomically."""
        decided = {"precision": self.precision}
        save_state(directory, unwrapped(self.model), self.optimizer, self.history, self.average, decided, self.terms)

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.task.optimisation.epochs

    def epochs(self, feed: Feed | None = None) -> Iterator[History]:
        """Train the remaining epochs; yields the history after each. Without a feed, the task's images are kept in memory."""
        task = self.task
        for sentence in task.left_out:
            self.progress(sentence)
        if self.history:
            self.progress(f"going on after epoch {len(self.history)}")
        if self.precision == "bfloat16" and not multiplies_in_bfloat16(self.device):
            self.progress("trains in bfloat16, which this processor only emulates: about ten times slower than float32")
        optimisation = dataclasses.replace(task.optimisation, precision=self.precision)
        if feed is None:
            assert task.train is not None
            feed = Resident(task.train, task.optimisation, task.objective, task.seed, self.device, self.rank, self.world)
        learner = Learner(
            model=self.model, optimizer=self.optimizer, optimisation=optimisation, objective=task.objective, seed=task.seed,
            terms=self.terms, average=self.average, teacher=self.teacher, compiled=self.compiled, rank=self.rank, world=self.world,
            progress=self.progress,
        )  # fmt: skip
        rows = train(learner, feed, task.validation, self.history)
        for self.history in rows:
            yield self.history

    @property
    def network(self) -> Classifier:
        """The network so far: the averaged one, if weights are averaged."""
        network = unwrapped(self.model) if self.average is None else self.average.module
        assert isinstance(network, Classifier)
        return network

    def write_snapshot(self, directory: Path, name: str) -> None:
        """Write the present network as a checkpoint."""
        checkpoint.save(self.network, directory, {"name": name, "history": self.history})

    def write_outcome(self, directory: Path) -> None:
        """Write the finished network and its figures. Only here it is evaluated on the test images, if the task has any."""
        task = self.task
        checkpoint.save(self.network, directory / "model", {})
        images = {"train": task.count, "validation": len(task.validation), "left_out": len(task.left_out)}
        outcome: dict[str, Any] = {"history": self.history, "images": images, "precision": self.precision}
        outcome["compiled"] = self.compiled is not None and self.compiled.active
        if task.test is not None:
            finished = checkpoint.load(directory / "model").to(self.device)  # with torch's own batch normalisation
            unseen = task.test()
            maps = min(task.maps, len(unseen.samples))
            figures = evaluate(finished, unseen.samples, teacher=self.teacher, maps=maps, progress=self.progress)
            outcome["test"] = figures | {"left_out": len(unseen.left_out), "images_fingerprint": unseen.fingerprint}
        write_json(directory / "outcome.json", outcome)


def _agreed(value: Precision, world: int) -> Precision:
    """The first worker's value, for all workers."""
    said: list[Precision] = [value]
    if world > 1 and dist.is_initialized():
        dist.broadcast_object_list(said, src=0)
    return said[0]


def finish_run(
    name: str,
    config: Any,
    out: Path,
    outcome: Path,
    command: str,
    started: datetime.datetime,
    made: Mapping[str, Any],
    teacher_parameters: int | None = None,
) -> dict[str, Any]:
    """Turn the files of `write_outcome` into the result of a run.

    Args:
        name: the job's name.
        config: the run's configuration, with `seed`.
        out: the run's directory.
        outcome: the directory that `write_outcome` wrote to.
        command: the command line, as typed.
        made: further entries of the row.
        teacher_parameters: number of parameters of a student's teacher; None for a teacher.

    Returns:
        the result row, also in OUT/result.json, which is written last; the network is OUT/model.safetensors and OUT/model.json.
    """
    model = checkpoint.load(outcome / "model")
    parameters = parameter_count(model)
    row = {
        "job": name,
        "name": name,
        "network": model.spec.name,
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        **read_json(outcome / "outcome.json"),
        "classes": len(model.spec.classes),
        "parameters": parameters,
        "multiply_adds": multiply_adds(model),
        "compression": 1.0 if teacher_parameters is None else round(teacher_parameters / parameters, 2),
        "provenance": provenance.provenance(command, config.seed, started),
        **made,
    }
    checkpoint.save(model, out, {k: row[k] for k in ("job", "config", "images", "history", "test", "provenance") if k in row})
    write_json(out / "result.json", row)
    return row
