"""Streams a store that does not fit into memory: Ray Data reads its parts in random order and decodes them for the workers."""

import math
from collections.abc import Iterator
from typing import Any

import ray.data
import torch

from igkd.config.distill import DistillConfig
from igkd.images.samples import Samples
from igkd.store import Store
from igkd.training.augment import draw
from igkd.training.batches import Batch, check_sizes, joined, steps_of
from igkd.training.student_rows import training_rows
from igkd.training.task import Task
from jobs.backend.runtime import READ_CPUS

SHUFFLED = 4096
"""Size of the shuffle buffer that batches are drawn from, in images: sixteen parts of a store of small images."""


class ReadPart:
    """A task: the training images of some parts, a row each."""

    def __init__(self, config: DistillConfig, store: Store) -> None:
        self.config, self.store = config, store

    def __call__(self, parts: Any) -> Iterator[dict[str, Any]]:
        for part in parts["item"]:
            samples = training_rows(self.config, self.store, int(part))
            if len(samples):
                yield samples.columns()


def training_dataset(config: DistillConfig, store: Store) -> ray.data.Dataset:
    """All training images of a store; each pass over them reads the parts in another order."""
    parts = list(range(store.plan.parts))
    return (
        ray.data.from_items(parts, override_num_blocks=len(parts))
        .randomize_block_order()
        .map_batches(ReadPart(config, store).__call__, batch_size=1, batch_format="numpy", num_cpus=READ_CPUS)
    )


class Stream:
    """A worker's share of a data set. Shares are equal; a remainder smaller than the number of workers is left out."""

    def __init__(self, shard: ray.data.DataIterator, task: Task, device: torch.device, rank: int, world: int) -> None:
        check_sizes(task.count, task.optimisation.batch_size, world)
        self.shard, self.task, self.device, self.rank, self.world = shard, task, device, rank, world
        self.count, mine = task.count, task.count // world
        self.size = math.ceil(mine / steps_of(task.count, task.optimisation.batch_size))
        self.steps = math.ceil(mine / self.size) - (mine % self.size == 1 < min(self.size, mine))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        task = self.task
        batches = self.shard.iter_batches(
            batch_size=self.size,
            batch_format="numpy",
            local_shuffle_buffer_size=max(SHUFFLED, 2 * self.size),
            local_shuffle_seed=1_000_003 * task.seed + 1009 * epoch + self.rank,
        )
        for columns in joined(batches):
            samples = Samples.from_columns(columns)
            draws = draw(task.seed, epoch, samples.ids, samples.shape, task.optimisation, task.objective)
            yield Batch(samples.to(self.device), draws.to(self.device), len(samples) * self.world)
