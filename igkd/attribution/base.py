"""What every engine takes and gives."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from igkd.base.choices import Engine
from igkd.networks.network import Classifier

Colour = tuple[float, ...]
"""Red, green and blue in [0, 1], or one value for all three."""
FAST_ENGINES: tuple[Engine, ...] = ("torch", "openvino", "openvino-bf16")
# Interpolated 32x32 inputs in one pass: enough to keep a device busy, few enough for a processor's caches; larger images get fewer.
INPUTS_PER_PASS = {"cpu": 32, "cuda": 4096}
LEAST_INPUTS_PER_PASS = 4


@dataclass(frozen=True)
class Attribution:
    """Maps of B images, on the processor."""

    ig: Tensor
    """float32 (B, H, W), in logit units, not negative."""
    delta: Tensor
    """float32 (B,): completeness error, sum of attributions - (F(x) - F(baseline)); 0 for an exact integral."""
    logits: Tensor
    """float32 (B, classes) of the images themselves."""


class FromBaseline(nn.Module):
    """A network as a function of what an image has beyond the baseline, so that every path begins at 0."""

    shift: Tensor | None

    def __init__(self, model: Classifier, baseline: Colour | None) -> None:
        """Args:
        model: in evaluation mode.
        baseline: the even colour that maps start from; None is 0 in the network's normalised space, its mean colour.
        """
        super().__init__()
        self.model = model
        weights = next(model.parameters())
        self.device, shift = weights.device, None
        if baseline is not None:
            shift = model.normalise(torch.tensor(baseline, dtype=weights.dtype, device=weights.device).view(1, -1, 1, 1))
        # The network's own mean colour is exactly 0 there: its maps are then the same to the bit, whoever names the colour.
        self.register_buffer("shift", None if shift is None or not shift.any() else shift, persistent=False)

    def beyond(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), uint8 or in [0, 1], to their normalised difference from the baseline, on the network's device."""
        x = self.model.normalise(as_float(pixels).to(self.device))
        return x if self.shift is None else x - self.shift

    def forward(self, z: Tensor) -> Tensor:
        """Such differences (B, 3, H, W) to logits (B, classes)."""
        # A copy in any case: networks that begin with an operation in place would overwrite the caller's images.
        return self.model.from_normalised(z.clone() if self.shift is None else z + self.shift)


class Attributor(Protocol):
    """Computes maps in memory that does not grow with the number of images."""

    def __call__(self, pixels: Tensor, labels: Tensor, ids: Tensor) -> Attribution:
        """
        Args:
            pixels: float (B, 3, H, W) in [0, 1], or uint8 of the same shape.
            labels: int64 (B,), the target of each image.
            ids: int64 (B,), from which random numbers are drawn where a method needs some.
        """


def inputs_per_pass(device: str, pixels: int) -> int:
    """Interpolated inputs of `pixels` pixels each that one pass takes on a kind of device, or a thread of a processor."""
    return max(LEAST_INPUTS_PER_PASS, INPUTS_PER_PASS.get(device, INPUTS_PER_PASS["cpu"]) * 32 * 32 // pixels)


def as_float(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def first_line(error: BaseException) -> str:
    """What an error says, in a line that fits into a sentence."""
    line = (str(error).strip().splitlines() or [""])[0].strip() or type(error).__name__
    return line if len(line) <= 100 else f"{line[:97]}..."
