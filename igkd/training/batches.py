"""The batches of a training run, from rows in memory or from a stream."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from igkd.base.errors import UserError
from igkd.base.random_draws import shuffled
from igkd.config.optimisation import Objective, Optimisation
from igkd.images.samples import Samples
from igkd.training.augment import Draws, draw


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step."""

    samples: Samples
    draws: Draws
    size: int
    """Number of images of the whole step, over all workers."""


class Feed(Protocol):
    """The training images of one worker, epoch by epoch."""

    count: int
    """Number of images of an epoch, over all workers."""
    steps: int
    """Number of steps of an epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch (counted from 1), on the network's device."""


class Resident:
    """All training images on the device as uint8; their order is a function of (seed, epoch, id), for any number of workers.

    Worker `rank` takes every world-th image of each batch; every image is used once an epoch.
    """

    def __init__(
        self,
        samples: Samples,
        optimisation: Optimisation,
        objective: Objective,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_sizes(len(samples), optimisation.batch_size, world)
        self.samples, self.optimisation, self.objective, self.seed = samples.to(device), optimisation, objective, seed
        self.rank, self.world, self.device = rank, world, device
        self.count, self.steps = len(samples), steps_of(len(samples), optimisation.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        ids, shape = self.samples.ids, self.samples.shape
        draws = draw(self.seed, epoch, ids, shape, self.optimisation, self.objective).to(self.device)
        for positions in epoch_batches(self.seed, epoch, ids, self.optimisation.batch_size):
            mine = positions[self.rank :: self.world]
            index = torch.from_numpy(mine).to(self.device, non_blocking=True)
            yield Batch(self.samples.select(mine, index), draws.select(index), len(positions))


def epoch_batches(seed: int, epoch: int, ids: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Positions (int64) of each step's images: every image once, ordered by (seed, epoch, ids), in batches of nearly equal size."""
    order = shuffled(seed, f"epoch {epoch} order", ids)
    return np.array_split(order, steps_of(len(order), batch_size))


def plan_line(found: str, held_out: int, train: int, optimisation: Optimisation) -> str:
    """What was found and what a run of it comes to, as a line.

    Args:
        found: the pictures and where they are, such as "600 training pictures of 10 classes".
        held_out: how many of them are the validation split.
        train: how many are trained on.
    """
    epochs, steps = optimisation.epochs, steps_of(train, optimisation.batch_size)
    return f"{found}, {held_out:,} of them held out for validation; {epochs:,} epochs of {steps:,} steps are {epochs * steps:,} steps"


def steps_of(count: int, batch_size: int) -> int:
    """Number of batches for `count` images, at least one.

    No batch has a single image, unless --batch-size is 1: batch normalisation cannot train on one value a channel, and a single image may
    have no more. So with batches of two, an odd number of images gives one batch of three.
    """
    most = math.ceil(count / batch_size)
    return max(1, most if batch_size == 1 else min(most, count // 2))


def joined(batches: Iterable[dict[str, NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches of a stream, as columns of equal length. A last batch of one image is joined to the one before, unless that has one, too."""
    held: dict[str, NDArray[Any]] | None = None
    for batch in batches:
        if held is not None and len(batch["ids"]) == 1 < len(held["ids"]):
            batch = {name: np.concatenate([held[name], column]) for name, column in batch.items()}
        elif held is not None:
            yield held
        held = batch
    if held is not None:
        yield held


def check_sizes(count: int, batch_size: int, world: int) -> None:
    """Check that there are enough training images, and batches are large enough, for the workers.

    Raises:
        UserError: they are not; the message says what is needed.
    """
    if count < max(2, world):
        raise UserError(f"{count} training image(s) are too few for {world} worker(s); it takes at least {max(2, world)}")
    if count // math.ceil(count / batch_size) < world:
        raise UserError(f"batches of {batch_size} are too small for {world} workers; use --batch-size {2 * world} or more")


def check_validation(count: int, world: int) -> None:
    """Check that there are enough validation images for the workers.

    Raises:
        UserError: there are not; the message says what is needed.
    """
    if count < world:
        raise UserError(f"{count} validation image(s) are too few for {world} worker(s); it takes at least {world}")
