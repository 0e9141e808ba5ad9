"""The allowed values of settings that are a word, as Literal types; and arms, which are sums of such words."""

from collections.abc import Iterable
from typing import Literal

from igkd.base.errors import UserError

Split = Literal["train", "test"]
BadImages = Literal["refuse", "skip"]
"""What to do with an image that cannot be used."""

Method = Literal["ig", "smoothgrad-ig", "input-x-gradient"]
Engine = Literal["captum", "torch", "openvino", "openvino-bf16"]
"""What computes maps."""
Forwards = Literal["torch", "openvino", "openvino-bf16"]
"""What computes logits of crops."""

Arm = str
"""What a student learns from besides the labels: nothing ("student"), or a sum of parts in the order of `PARTS`, such as "kd+ig"."""
PARTS: dict[str, str] = {
    "kd": "the teacher's logits",
    "ig": "an overlay of its maps",
    "at": "its attention",
    "map": "its maps as targets of the student's own",
    "dkd": "its logits, decoupled",
    "lskd": "its logits, standardised",
    "feat": "the features of one of its layers",
}
"""What each part of an arm adds. All are terms of the loss (`igkd.training.terms`) but ig, which changes the images."""
LOGIT_PARTS = frozenset({"kd", "dkd", "lskd"})
"""The parts that learn from the teacher's logits; all but kd need those of all classes."""
TAP_PARTS = frozenset({"at", "feat"})
"""The parts that compare a layer of the student with one of the teacher."""
MAP_PARTS = frozenset({"ig", "map"})
"""The parts that use a map, and so --content."""
ARMS: tuple[Arm, ...] = ("student", "kd", "ig", "kd+ig", "at", "kd+at", "ig+at", "kd+ig+at")
"""The eight arms of the usual grid: every sum of logits, overlay and attention."""
Explanation = Literal["ig", "gradcam"]
"""Which of a store's maps is meant: the attribution map, or the Grad-CAM."""
Content = Literal["own", "other", "black", "noise", "mask", "brightness"]
"""What is used as an image's map, in the overlay and as a target: its own map, or a control."""
Logits = Literal["image", "views", "live"]
"""What the teacher says of: the whole image, the crop as the store has it, or the crop asked in training."""

Crop = Literal["auto", "padded", "resized"]
"""What part of an image a network sees in training: one shifted by whole pixels, or a smaller one enlarged; auto decides by the size."""

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "one-cycle"]
Precision = Literal["auto", "float32", "bfloat16"]

Format = Literal["onnx", "onnx-int8", "torch-export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "onnx-int8": ".onnx", "torch-export": ".pt2"}
"""Of files for devices."""


def parts_of(arm: Arm) -> tuple[str, ...]:
    """The parts of an arm, in its order; none of "student"."""
    return () if arm == "student" else tuple(arm.split("+"))


def canonical_arm(arm: str) -> Arm:
    """The arm with its parts in the order of `PARTS`, so that ig+kd and kd+ig are one run.

    Raises:
        UserError: a part is unknown or there twice, or there is none.
    """
    parts = parts_of(arm)
    wrong = [part for part in dict.fromkeys(parts) if part not in PARTS or parts.count(part) > 1]
    if wrong:
        known = ", ".join(f"{part} ({words})" for part, words in PARTS.items())
        what = f"has {wrong[0]} twice" if wrong[0] in PARTS else f"has no part {wrong[0]!r}"
        raise UserError(f"the arm {arm!r} {what}: an arm is student, or a sum of different parts such as kd+ig+at; the parts are {known}")
    return "+".join(part for part in PARTS if part in parts) or "student"


def canonical_arms(arms: Iterable[str] | None) -> tuple[Arm, ...] | None:
    """Several arms, each once, in their canonical spelling; None stays None.

    Raises:
        UserError: one is not an arm.
    """
    return None if arms is None else tuple(dict.fromkeys(map(canonical_arm, arms)))
