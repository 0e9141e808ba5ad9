"""What tests of training share: a tiny network and random images."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from igkd.config.optimisation import Objective, Optimisation
from igkd.images.samples import Samples
from igkd.networks.network import NetworkSpec
from igkd.training.augment import draw
from igkd.training.batches import Batch, Resident
from igkd.training.loop import Learner, compute_loss, make_average, train
from igkd.training.optimizer import make_optimizer
from igkd.training.state import History

TINY = NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name="mobilenet:cut=11,width=0.35")


def recipe(**changes: Any) -> Optimisation:
    """In float32, since losses are compared with formulas, and what auto chooses depends on the processor."""
    usual = {"optimizer": "sgd", "schedule": "one-cycle", "learning_rate": 0.05, "weight_decay": 5e-4, "epochs": 3, "batch_size": 8}
    return Optimisation(**usual | {"padding": 2, "precision": "float32"} | changes)


def random_samples(count: int, seed: int = 0, size: int = 16) -> Samples:
    """Images with maps, logits and 8x8 attention, all of them noise."""
    generator = torch.Generator().manual_seed(seed)
    return Samples(
        ids=np.arange(count) * 3 + 100,
        pixels=torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator),
        labels=torch.randint(0, 3, (count,), generator=generator),
        signals={
            "ig": torch.rand(count, size, size, generator=generator),
            "logits": 2 * torch.randn(count, 3, generator=generator),
            "attention": nn.functional.normalize(torch.rand(count, 64, generator=generator)).view(count, 8, 8),
        },
    )


def quiet(line: str) -> None:
    assert "epoch" in line


def resident(samples: Samples, how: Optimisation, objective: Objective, seed: int, rank: int = 0, world: int = 1) -> Resident:
    return Resident(samples, how, objective, seed, torch.device("cpu"), rank, world)


def learner(model: nn.Module, how: Optimisation, objective: Objective | None = None, seed: int = 0, **rest: Any) -> Learner:
    """A network in training, with a new optimizer and average where none are given."""
    rest = {"optimizer": make_optimizer(model, how), "average": make_average(model, how), "progress": quiet} | rest
    return Learner(model=model, optimisation=how, objective=objective or Objective(), seed=seed, **rest)


def run(
    model: nn.Module, samples: Samples, how: Optimisation, seed: int = 0, objective: Objective | None = None, *, rank: int = 0,
    world: int = 1, validation: Samples | None = None, history: History | None = None, **rest: Any,
) -> History:  # fmt: skip
    """A whole run, or the rest of one; its last history."""
    own = learner(model, how, objective, seed, rank=rank, world=world, **rest)
    feed = resident(samples, how, own.objective, seed, rank, world)
    rows = list(train(own, feed, random_samples(5, seed=9) if validation is None else validation, history or []))
    return rows[-1] if rows else history or []


def loss_of(model: nn.Module, samples: Samples, objective: Objective, *, seed: int, epoch: int, padding: int, **rest: Any) -> Any:
    """`compute_loss` on all samples at once."""
    how = recipe(padding=padding)
    batch = Batch(samples, draw(seed, epoch, samples.ids, samples.shape, how, objective), len(samples))
    scale = rest.pop("scale", 1.0)
    return compute_loss(learner(model, how, objective, seed, **rest), batch, epoch, scale)


def without_seconds(history: History) -> History:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Watcher(nn.Module):
    """A linear classifier that notes which images it was trained on, read off the corner that all of an image's pixels share."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.steps: list[list[int]] = []

    def forward(self, pixels: Tensor) -> Tensor:
        if self.training:
            self.steps.append((pixels[:, 0, 0, 0] * 255).round().int().tolist())
        return self.linear(pixels.mean(dim=(2, 3)))


def plain_samples(count: int) -> Samples:
    """Image i is a plain area of value i."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return Samples(np.arange(count) + 5, pixels, torch.arange(count) % 3)
