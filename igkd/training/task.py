"""The input of a training run: network, images, settings."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from igkd.base.errors import UserError
from igkd.config.optimisation import Objective, Optimisation
from igkd.images.samples import Samples
from igkd.networks.network import Classifier, NetworkSpec, values_a_channel
from igkd.training.held_out import Unseen


@dataclass(frozen=True, kw_only=True)
class Task:
    """One network to train."""

    spec: NetworkSpec
    train: Samples | None
    """The training images; None if they are streamed."""
    count: int
    """Number of training images."""
    validation: Samples
    left_out: tuple[str, ...] = ()
    """A sentence for each training image that cannot be used."""
    optimisation: Optimisation
    objective: Objective
    seed: int
    initial: Mapping[str, Tensor] | None = None
    """Weights that the network starts from, by the names of its tensors; those that are missing are random."""
    teacher: Classifier | None = None
    """The student's teacher, if it is available."""
    keep_epochs: tuple[int, ...] = ()
    """Epochs after which the network is saved as a separate checkpoint."""
    maps: int = 0
    """Number of test images whose maps are compared with the teacher's at the end."""
    test: Callable[[], "Unseen"] | None = None
    """Gives the test images for the evaluation at the end; None if there are none, or they must not be read."""


@dataclass
class Moments:
    """Sums over pixels for computing mean and standard deviation. The sums are whole numbers, so the result is exactly the same in
    whatever parts the pixels are added."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.int64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.int64))

    def add(self, pixels: Tensor) -> None:
        """Add pixels, uint8 (N, 3, H, W)."""
        for batch in pixels.split(256):
            whole = batch.to(torch.int64)
            self.count += whole[:, 0].numel()
            self.total += whole.sum(dim=(0, 2, 3))
            self.squares += (whole * whole).sum(dim=(0, 2, 3))

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of pixels in [0, 1] per channel, to four digits."""
        n, mean, std = self.count, [], []
        for total, squares in zip(self.total.tolist(), self.squares.tolist(), strict=True):
            variance = (n * squares - total * total) / (n * max(1, n - 1))
            mean.append(round(total / n / 255, 4))
            std.append(max(round(math.sqrt(variance) / 255, 4), 1e-4))
        return tuple(mean), tuple(std)


def check_batch_size(spec: NetworkSpec, optimisation: Optimisation) -> None:
    """Check that no batch normalisation would get a single value a channel, which has no variance, from a batch of one image.

    Raises:
        UserError: one would; the message says what is needed.
    """
    scale = optimisation.lowest_scale
    if optimisation.batch_size == 1 and values_a_channel(spec, scale) == 1:
        height, width = (round(side * scale) for side in spec.image_shape)
        raise UserError(
            f"--batch-size 1 is too small: at {height}x{width} pixels this network's last feature maps have a single pixel, and batch "
            "normalisation needs two values a channel; use --batch-size 2 or more"
        )


def every(count: int) -> int:
    """The step that selects at most 10,000 of `count` training images, for computing mean and standard deviation of the pixels."""
    return max(1, -(-count // 10_000))
