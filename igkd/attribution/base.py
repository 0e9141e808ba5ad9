"""What every engine takes and gives."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Method = Literal["ig", "smoothgrad-ig", "input-x-gradient"]
Engine = Literal["captum", "torch", "openvino", "openvino-bf16"]
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
