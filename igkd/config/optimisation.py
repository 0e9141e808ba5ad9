"""Settings of training: how the weights are optimised, and what the network learns from."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from igkd.base.choices import Content, Logits, Optimizer, Precision, Schedule
from igkd.base.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FewCrops:
    """The random crops of each image whose teacher's logits a store has; the same for all runs on that store."""

    count: int
    """Number of crops of each image."""
    seed: int
    """Seed from which, with the image's id, the crops are computed."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained."""

    optimizer: Optimizer
    """sgd has Nesterov momentum 0.9."""
    schedule: Schedule
    """Schedule of the learning rate: constant, or one cycle of warm-up and cosine."""
    learning_rate: float
    """Constant, or the cycle's peak."""
    weight_decay: float
    epochs: int
    batch_size: int
    """Images a step, over all workers together."""
    padding: int = 4
    """Padding of the random crop, in pixels on each side."""
    cutout: int = 0
    """Side in pixels of a grey square that hides a part of every training image (DeVries, Taylor 2017); 0 for none."""
    averaging: float = 0.0
    """Decay by step of an exponential moving average of the weights, which is then the network; 0 for none."""
    precision: Precision = "auto"
    """Precision of the forward pass in training; auto is bfloat16 autocast if the device has instructions for it, else float32."""
    low_resolution_epochs: int = 0
    """Epochs at the start trained at 3/4 of the resolution: nearly twice as fast (progressive resizing)."""
    label_smoothing: float = 0.0
    """Share of a label's weight that is spread evenly over all classes (Szegedy et al. 2016)."""
    compile: bool = False
    """Compile the training step by torch.compile."""
    head_factor: float = 1.0
    """Learning rate of the network's last layer, by that of the others."""
    freeze_norms: bool = False
    """Leave the statistics of batch normalisations as they are."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not 0 < self.learning_rate < inf or not 0 <= self.low_resolution_epochs <= self.epochs:
            raise UserError(
                "epochs and batch-size must be at least 1, the learning rate above 0, low-resolution epochs at most all of them"
            )
        if not 0 < self.head_factor < inf:
            raise UserError("the learning rate of the last layer must be above 0")
        if not 0 <= self.weight_decay < inf:
            raise UserError(f"the weight decay must be a number of at least 0, not {self.weight_decay}")
        if self.cutout < 0 or not 0 <= self.averaging < 1 or not 0 <= self.label_smoothing < 1:
            raise UserError("cutout must be at least 0, averaging and label smoothing at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a student learns from; by default from labels alone, like a teacher."""

    alpha: float = 0.0
    """Weight of distillation; the labels' cross-entropy has 1 - alpha."""
    temperature: float = 2.5
    gamma: float = 0.0
    """Weight of attention transfer."""
    overlay: float = 0.0
    """Probability that an image is overlaid with its map."""
    exponents: tuple[float, float] = (1.0, 2.0)
    """Range of the overlay's exponent, drawn log-uniformly."""
    blend: float = 0.5
    """Weight of the overlay; the image has 1 - blend."""
    content: Content = "own"
    """What is laid over: the image's own map, or a control."""
    overlay_schedule: Literal["constant", "rising", "falling"] = "constant"
    """How the overlay's probability changes over a run: constant, linearly from 0 to its double, or the reverse; its mean is the same."""
    uncropped_maps: bool = False
    """Leave map and attention as they are where the image is cropped and flipped, as the published code does."""
    logits: Logits = "image"
    """What the teacher says of: the whole image, as the store has it; the crop that the student sees, as the store has it (views); or that
    crop, asked in training (live)."""
    crops: FewCrops | None = None
    """The crops of which one is used in each epoch; None for any that the padding allows."""
    tap: str | None = None
    """Path of the student's layer whose attention is compared, such as features.9; needed where gamma is above 0."""
    teacher_tap: str | None = None
    """Path of the teacher's layer that it is compared with; needed with a live teacher."""

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.overlay <= 1 and 0 <= self.blend <= 1 and self.gamma >= 0 and self.temperature > 0):
            raise UserError("alpha, overlay and blend must be between 0 and 1, gamma at least 0, the temperature above 0")
        if self.overlay_schedule != "constant" and self.overlay > 0.5:
            raise UserError(f"an overlay of {self.overlay} cannot rise to twice as much; choose at most 0.5 with --overlay-schedule")
        if not 0 < self.exponents[0] <= self.exponents[1]:
            raise UserError(
                f"exponents {self.exponents[0]} {self.exponents[1]} are no range: the first must be above 0 and not above the second"
            )
