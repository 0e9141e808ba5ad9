"""The interface of attribution engines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from igkd.base.choices import Engine
from igkd.networks.network import Classifier

Colour = tuple[float, ...]
"""Red, green and blue in [0, 1], or one value for all three."""
FAST_ENGINES: tuple[Engine, ...] = ("torch", "openvino", "openvino-bf16")
# Interpolated inputs of 32x32 pixels in one pass: enough to keep a device busy, few enough for a CPU's caches. `inputs_per_pass` lowers
# the number for larger images.
INPUTS_PER_PASS = {"cpu": 32, "cuda": 4096}
LEAST_INPUTS_PER_PASS = 4


@dataclass(frozen=True)
class Attribution:
    """Maps of B images, on the CPU."""

    ig: Tensor
    """float32 (B, H, W), in units of a logit, not negative."""
    delta: Tensor
    """float32 (B,), completeness error: sum of attributions - (F(x) - F(baseline)); 0 if the integral is exact."""
    logits: Tensor
    """float32 (B, classes), the network's logits of the images."""


class FromBaseline(nn.Module):
    """The network as a function of z = image - baseline, in normalised space, so that every integration path starts at z = 0."""

    shift: Tensor | None

    def __init__(self, model: Classifier, baseline: Colour | None) -> None:
        """Args:
        model: in evaluation mode.
        baseline: colour of the baseline image; None is the network's mean colour, 0 in its normalised space.
        """
        super().__init__()
        self.model = model
        weights = next(model.parameters())
        self.device, shift = weights.device, None
        if baseline is not None:
            shift = model.normalise(torch.tensor(baseline, dtype=weights.dtype, device=weights.device).view(1, -1, 1, 1))
        # If `baseline` is the network's mean colour, the shift is exactly 0. Skip it, so that the maps equal those of None bit for bit.
        self.register_buffer("shift", None if shift is None or not shift.any() else shift, persistent=False)

    def beyond(self, pixels: Tensor) -> Tensor:
        """z (B, 3, H, W) on the network's device, from pixels (B, 3, H, W) that are uint8 or floats in [0, 1]."""
        x = self.model.normalise(as_float(pixels).to(self.device))
        return x if self.shift is None else x - self.shift

    def forward(self, z: Tensor) -> Tensor:
        """Logits (B, classes) for z (B, 3, H, W)."""
        # Always pass a copy: a network that begins with an in-place operation would overwrite the caller's tensor.
        return self.model.from_normalised(z.clone() if self.shift is None else z + self.shift)


Tell = Callable[[int], None]
"""A function that is told how many images are done."""


def nobody(done: int) -> None:
    """Tell nobody."""


class Attributor(Protocol):
    """A function that computes maps; its memory does not grow with the number of images."""

    def __call__(self, pixels: Tensor, labels: Tensor, ids: Tensor, tell: Tell = nobody) -> Attribution:
        """
        Args:
            pixels: float (B, 3, H, W) in [0, 1], or uint8 of the same shape.
            labels: int64 (B,), the class whose logit is explained.
            ids: int64 (B,), image ids; smoothgrad-ig computes its noise from them.
            tell: called again and again with the number of images that are done.
        """


def inputs_per_pass(device: str, pixels: int) -> int:
    """Number of interpolated inputs, of `pixels` pixels each, in one pass on a device ("cpu": in one thread)."""
    return max(LEAST_INPUTS_PER_PASS, INPUTS_PER_PASS.get(device, INPUTS_PER_PASS["cpu"]) * 32 * 32 // pixels)


def as_float(pixels: Tensor) -> Tensor:
    """Pixels as float in [0, 1]; uint8 is divided by 255."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
