"""The registry of signals: what a store keeps of each image for students to learn from, beside the picture and its label.

A new signal is one class here, and one entry in `SIGNALS`. It is then computed, stored, checked, read, streamed and put into batches like
the others; what a term or an augmentation makes of it is theirs. The logits of crops are apart (store/views.py): they can be added later.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from igkd.attribution import Attribution, inputs_per_pass
from igkd.attribution.attention import attention_map, moved_attention
from igkd.images.views import View, crop_flip
from igkd.networks.network import Classifier

if TYPE_CHECKING:
    from igkd.store.plan import Plan


@dataclass(frozen=True)
class Answers:
    """What a teacher made of B images, of which signals take their part."""

    model: Classifier
    pixels: Tensor
    """float32 (B, 3, H, W) in [0, 1], on the processor."""
    attribution: Attribution
    plan: "Plan"


class Signal(abc.ABC):
    """One signal."""

    words: str
    """What it is, in messages."""
    of_teacher = True
    """Whether a teacher gives it; else the image source does."""
    for_students = True
    """Whether students are given it; else it is there to be looked at."""

    @abc.abstractmethod
    def column(self, plan: "Plan") -> tuple[tuple[int, ...], str] | None:
        """Shape and dtype of one image's value; None if this store has none."""

    def compute(self, answers: Answers) -> Tensor:
        """Of B images, float32 (B, *shape) on the processor."""
        raise AssertionError(f"{self.words} comes from the image source")

    def moved(self, values: Tensor, view: View, image_shape: tuple[int, int]) -> Tensor:
        """Of the B images in the views that students see: as it is, unless it has places that move along.

        Args:
            values: (B, *shape).
            image_shape: (H, W) in pixels that the view refers to.
        """
        return values


class Map(Signal):
    """The integrated-gradients map, one value a pixel."""

    words = "a map"

    def column(self, plan: "Plan") -> tuple[tuple[int, ...], str]:
        return plan.image_shape, plan.precision

    def compute(self, answers: Answers) -> Tensor:
        return answers.attribution.ig

    def moved(self, values: Tensor, view: View, image_shape: tuple[int, int]) -> Tensor:
        return crop_flip(values, view)


class CompletenessError(Signal):
    """By how much a map's sum misses the difference of the logits that it explains."""

    words = "a completeness error"
    for_students = False

    def column(self, plan: "Plan") -> tuple[tuple[int, ...], str]:
        return (), "float32"

    def compute(self, answers: Answers) -> Tensor:
        return answers.attribution.delta


class Logits(Signal):
    """The teacher's logits of the whole image."""

    words = "logits"

    def column(self, plan: "Plan") -> tuple[tuple[int, ...], str]:
        return (len(plan.classes),), "float32"

    def compute(self, answers: Answers) -> Tensor:
        return answers.attribution.logits


class Attention(Signal):
    """The attention map of one of the teacher's layers."""

    words = "attention"

    def column(self, plan: "Plan") -> tuple[tuple[int, ...], str] | None:
        return None if plan.attention_layer is None else (plan.attention_shape, plan.precision)

    def compute(self, answers: Answers) -> Tensor:
        assert answers.plan.attention_layer is not None
        return attention_of(answers.model, answers.pixels, answers.plan.attention_layer)

    def moved(self, values: Tensor, view: View, image_shape: tuple[int, int]) -> Tensor:
        return moved_attention(values, view, image_shape)


class Mask(Signal):
    """Where the object is, if the image source knows it."""

    words = "a mask"
    of_teacher = False

    def column(self, plan: "Plan") -> tuple[tuple[int, ...], str] | None:
        return (plan.image_shape, "uint8") if plan.has_mask else None

    def moved(self, values: Tensor, view: View, image_shape: tuple[int, int]) -> Tensor:
        return crop_flip(values, view)


SIGNALS: Mapping[str, Signal] = {
    "ig": Map(),
    "ig_delta": CompletenessError(),
    "logits": Logits(),
    "attention": Attention(),
    "mask": Mask(),
}
"""By the name of its column, in the order of the columns."""


def columns_of(plan: "Plan") -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each signal that a store of this plan has, by name."""
    found = {name: signal.column(plan) for name, signal in SIGNALS.items()}
    return {name: column for name, column in found.items() if column is not None}


def arrow_fields(plan: "Plan") -> list[Any]:
    """The Arrow fields of these columns."""
    return [
        pa.field(name, pa.fixed_shape_tensor(pa.type_for_alias(dtype), shape) if shape else pa.type_for_alias(dtype), nullable=False)
        for name, (shape, dtype) in columns_of(plan).items()
    ]


def attention_of(model: Classifier, pixels: Tensor, layer: str) -> Tensor:
    """Attention maps (B, h, w) of float pixels (B, 3, H, W) in [0, 1], on the processor."""
    device = next(model.parameters()).device
    size = inputs_per_pass(device.type, pixels.shape[-2] * pixels.shape[-1])
    with torch.inference_mode():
        return torch.cat([attention_map(model(batch.to(device), (layer,))[1][layer]).float().cpu() for batch in pixels.split(size)])
