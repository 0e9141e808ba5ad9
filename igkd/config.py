"""Settings of every job, with their defaults: the one place where defaults live. `jobs` turn them into command lines."""

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import tyro

from igkd.errors import UserError
from igkd.models import attention_layer

Arm = Literal["student", "kd", "ig", "kd+ig", "at", "kd+at", "ig+at", "kd+ig+at"]
ARMS: tuple[Arm, ...] = get_args(Arm)
BadImages = Literal["refuse", "skip"]
Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained."""

    optimizer: Literal["sgd", "adam"]
    """sgd has Nesterov momentum 0.9 and a one-cycle schedule; adam a constant learning rate."""
    learning_rate: float
    """Peak (sgd) or constant (adam) learning rate."""
    weight_decay: float
    epochs: int
    batch_size: int
    """Images a step, over all workers together."""
    padding: int = 4
    """Pixels of random crop on each side."""
    low_resolution_epochs: int = 0
    """Epochs at the start trained at 3/4 of the resolution: nearly twice as fast (progressive resizing)."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.learning_rate <= 0 or not 0 <= self.low_resolution_epochs <= self.epochs:
            raise UserError("epochs and batch-size must be at least 1, the learning rate above 0, low-resolution epochs at most all of them")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a student learns from; the default is from labels alone, as a teacher does."""

    alpha: float = 0.0
    """Weight of distillation; the labels' cross-entropy has 1 - alpha."""
    temperature: float = 2.5
    gamma: float = 0.0
    """Weight of attention transfer."""
    overlay: float = 0.0
    """Probability that an image is overlaid with its map."""
    exponents: tuple[float, float] = (1.0, 2.0)
    """Range of the overlay's exponent, drawn log-uniformly."""
    tap: int | None = None
    """Index of the layer whose attention is transferred; needed where gamma is above 0."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Train a teacher: a whole MobileNet-V2, by one-cycle SGD, on all training images but the validation split."""

    images: str
    """cifar10, shapes, parquet:URI or folder:PATH."""
    out: str
    """Directory of the checkpoint and its result; the same command continues what is there."""
    epochs: int = 200
    learning_rate: float = 0.1
    """Peak of the one-cycle schedule."""
    weight_decay: float = 5e-4
    batch_size: int = 128
    """Images a step, over all workers together."""
    low_resolution_epochs: int = 0
    """Epochs at the start trained at 3/4 of the resolution: nearly twice as fast."""
    width: float = 1.0
    """Width multiplier of the network."""
    image_size: int | None = None
    """Scale and crop every picture to this many pixels a side; needed where sizes are mixed."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""
    seed: int = 0
    workers: int = 1
    """Data-parallel workers."""

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            optimizer="sgd",
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            batch_size=self.batch_size,
            low_resolution_epochs=self.low_resolution_epochs,
        )


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Compute the attribution store: maps, logits and attention of a teacher for every image."""

    images: str
    """cifar10, shapes, parquet:URI or folder:PATH."""
    teacher: str
    """Directory of the teacher's checkpoint."""
    store: str
    """Directory or s3:// URI of the store; the same command continues what is there."""
    split: Split = "train"
    limit: int | None = None
    """Only this many images: a random choice, stratified by class, fixed by their ids."""
    steps: int = 50
    """Integration steps of integrated gradients."""
    cut: int = 5
    """Student cut whose attention layer is tapped."""
    precision: Literal["float16", "float32"] = "float16"
    """How maps are stored."""
    rows_per_file: int | None = None
    """Images in one Parquet file: the unit of work, of a retry and of resumption; by default 250, less for large images."""
    image_size: int | None = None
    """Scale and crop every picture to this many pixels a side; needed where sizes are mixed."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distil one student from a store. Defaults are the paper's."""

    store: str
    """Directory or s3:// URI of the attribution store."""
    test_images: str
    """Images whose test split is read once, at the end."""
    out: str
    """Directory of the checkpoint and its result; the same command continues what is there."""
    arm: Arm = "kd+ig"
    """What the student learns from besides the labels: kd = logits, ig = overlay of maps, at = attention."""
    cut: int = 5
    """Trailing layers removed from the teacher's architecture: 3, 5, 7, 9, 11, 13, 15 or 17."""
    epochs: int = 100
    learning_rate: float = 1e-3
    """Of Adam, constant."""
    weight_decay: float = 0.0
    batch_size: int = 64
    """Images a step, over all workers together."""
    alpha: float = 0.01
    """Weight of distillation in the arms with kd."""
    temperature: float = 2.5
    gamma: float = 0.8
    """Weight of attention transfer in the arms with at."""
    overlay: float = 0.1
    """Probability of the overlay in the arms with ig."""
    exponents: tuple[float, float] = (1.0, 2.0)
    """Range of the overlay's exponent."""
    seed: int = 0
    workers: int = 1
    """Data-parallel workers."""

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            optimizer="adam",
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            batch_size=self.batch_size,
        )

    @property
    def objective(self) -> Objective:
        """The settings that this arm uses: what it lacks has weight 0."""
        parts = self.arm.split("+")
        return Objective(
            alpha=self.alpha if "kd" in parts else 0.0,
            temperature=self.temperature,
            gamma=self.gamma if "at" in parts else 0.0,
            overlay=self.overlay if "ig" in parts else 0.0,
            exponents=self.exponents,
            tap=attention_layer(self.cut) if "at" in parts else None,
        )


T = TypeVar("T")


def parse(config: type[T], prog: str) -> T:
    """A configuration from the command line."""
    return tyro.cli(config, prog=f"python -m {prog}")
