"""The registry of signals: the columns of a store that students can learn from, beside the picture and its label.

To add a signal, write one class here and add one entry to `SIGNALS`. It is then computed, stored, checked, read and put into batches like
the others; terms of the loss and augmentations find it in `Samples.signals`. The logits of crops are separate (store/views.py), because
they can be added to a finished store.
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
from igkd.attribution.gradcam import enlarged, grad_cam
from igkd.images.views import View, move
from igkd.networks.network import Classifier

if TYPE_CHECKING:
    from igkd.store.plan import Plan


@dataclass(frozen=True)
class Answers:
    """The teacher's results for B images, from which signals are computed."""

    model: Classifier
    pixels: Tensor
    """float32 (B, 3, H, W) in [0, 1], on the CPU."""
    labels: Tensor
    """int64 (B,)."""
    attribution: Attribution
    plan: "Plan"


class Signal(abc.ABC):
    """The interface of a signal."""

    words: str
    """What it is called in messages, with its article."""
    of_teacher = True
    """True if it is computed from the teacher, False if it comes from the image source."""
    for_students = True
    """Whether it is loaded for training; otherwise it is only stored, for inspection."""

    @abc.abstractmethod
    def column(self, plan: "Plan") -> tuple[tuple[int, ...], str] | None:
        """Shape and dtype of one image's value; None if a store of this plan does not have the signal."""

    def compute(self, answers: Answers) -> Tensor:
        """The signal of B images, float32 (B, *shape) on the CPU."""
        raise AssertionError(f"{self.words} comes from the image source")

    def moved(self, values: Tensor, view: View, image_shape: tuple[int, int]) -> Tensor:
        """The signal of B images after their views (crop and flip) were applied; by default unchanged.

        A signal with positions in the image, such as a map, must move with the image.

        Args:
            values: (B, *shape).
            image_shape: (H, W) of the images in pixels, which the view's shifts refer to.
        """
        return values


class Map(Signal):
    """The attribution map: one value for each pixel."""

    words = "a map"

    def column(self, plan: "Plan") -> tuple[tuple[int, ...], str]:
        return plan.image_shape, plan.precision

    def compute(self, answers: Answers) -> Tensor:
        return answers.attribution.ig

    def moved(self, values: Tensor, view: View, image_shape: tuple[int, int]) -> Tensor:
        return move(values, view)


class CompletenessError(Signal):
    """The completeness error: how far a map's sum is from the difference of logits that it explains."""

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


class GradCam(Signal):
    """The Grad-CAM of the label in the teacher's last layer with feature maps."""

    words = "a Grad-CAM"

    def column(self, plan: "Plan") -> tuple[tuple[int, ...], str] | None:
        return None if plan.gradcam_layer is None else (plan.gradcam_shape, plan.precision)

    def compute(self, answers: Answers) -> Tensor:
        assert answers.plan.gradcam_layer is not None
        return grad_cam(answers.model, answers.pixels, answers.labels, answers.plan.gradcam_layer)

    def moved(self, values: Tensor, view: View, image_shape: tuple[int, int]) -> Tensor:
        """The Grad-CAM at the image's size, float (B, H, W), moved like an attribution map."""
        return move(enlarged(values, image_shape), view)


class Mask(Signal):
    """The mask of the object, if the image source has one."""

    words = "a mask"
    of_teacher = False

    def column(self, plan: "Plan") -> tuple[tuple[int, ...], str] | None:
        return (plan.image_shape, "uint8") if plan.has_mask else None

    def moved(self, values: Tensor, view: View, image_shape: tuple[int, int]) -> Tensor:
        return move(values, view)


SIGNALS: Mapping[str, Signal] = {
    "ig": Map(),
    "ig_delta": CompletenessError(),
    "logits": Logits(),
    "attention": Attention(),
    "gradcam": GradCam(),
    "mask": Mask(),
}
"""Every signal by the name of its column, in the order of the columns."""


def columns_of(plan: "Plan") -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each signal that a store of this plan has, by name."""
    found = {name: signal.column(plan) for name, signal in SIGNALS.items()}
    return {name: column for name, column in found.items() if column is not None}


def arrow_fields(plan: "Plan") -> list[Any]:
    """The Arrow fields of `columns_of(plan)`."""
    return [
        pa.field(name, pa.fixed_shape_tensor(pa.type_for_alias(dtype), shape) if shape else pa.type_for_alias(dtype), nullable=False)
        for name, (shape, dtype) in columns_of(plan).items()
    ]


def attention_of(model: Classifier, pixels: Tensor, layer: str) -> Tensor:
    """Attention maps (B, h, w), on the CPU, of a layer for float pixels (B, 3, H, W) in [0, 1]."""
    device = next(model.parameters()).device
    size = inputs_per_pass(device.type, pixels.shape[-2] * pixels.shape[-1])
    with torch.inference_mode():
        return torch.cat([attention_map(model(batch.to(device), (layer,))[1][layer]).float().cpu() for batch in pixels.split(size)])
