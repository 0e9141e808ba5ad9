"""Settings of every job, with their defaults: the one place where defaults live. `jobs` turn them into command lines."""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import tyro

from igkd.attribution import Engine, Method
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
            raise UserError(
                "epochs and batch-size must be at least 1, the learning rate above 0, low-resolution epochs at most all of them"
            )


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

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.overlay <= 1 and self.gamma >= 0 and self.temperature > 0):
            raise UserError("alpha and overlay must be between 0 and 1, gamma at least 0, the temperature above 0")
        if not 0 < self.exponents[0] <= self.exponents[1]:
            raise UserError(
                f"exponents {self.exponents[0]} {self.exponents[1]} are no range: the first must be above 0 and not above the second"
            )


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
    stride: Literal[1, 2] = 1
    """Stride of the first layer: 1 for images of about 32 pixels a side, 2 for larger ones, a quarter of the work."""
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
    """Directory of the teacher's checkpoint, or torchvision:NAME for one trained on ImageNet."""
    store: str
    """Directory or s3:// URI of the store; the same command continues what is there."""
    split: Split = "train"
    limit: int | None = None
    """Only this many images: a random choice, stratified by class, fixed by their ids."""
    steps: int = 50
    """Integration steps of integrated gradients."""
    method: Method = "ig"
    """Integrated gradients, their mean over noisy images, or input times gradient."""
    engine: Literal["fast"] | Engine = "fast"
    """captum is the reference; fast gives the same maps sooner: by torch on a GPU or where OpenVINO is not installed, by openvino else,
    with the backward pass in bfloat16 where the processor of the driver has that."""
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
    repair: bool = False
    """Check every part that is there, name the damaged ones and compute them anew; also for a finished store."""


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


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Judge a checkpoint on any images of its classes: accuracy, calibration, and with --teacher and --maps how far it answers and looks
    as its teacher does."""

    checkpoint: str
    """Directory of a student's or teacher's checkpoint."""
    images: str
    """cifar10, shapes, parquet:URI or folder:PATH, of the same classes."""
    split: Split = "test"
    teacher: str | None = None
    """Directory of the teacher's checkpoint, to compare with."""
    maps: int = 0
    """For how many images, stratified by class, to compute integrated-gradients maps and judge them: 0, or at least 2."""
    steps: int = 50
    """Integration steps of integrated gradients."""
    limit: int | None = None
    """Only this many images: a random choice, stratified by class, fixed by their ids."""
    image_size: int | None = None
    """Scale and crop every picture to this many pixels a side; must be the checkpoint's."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""
    out: str | None = None
    """JSON file of the result; without it, only a table is printed."""

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.limit is not None and self.limit < 1):
            raise UserError("--steps and --limit must be at least 1")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The main job: a teacher if none is given, its attribution store, students of several arms, and a report.

    What is left out of the command line has the preset's value.
    """

    preset: Literal["demo", "cifar10"]
    """demo: built-in pictures, a few minutes on two cores; cifar10: the paper's protocol, for a GPU."""
    out: str
    """Directory of everything; the same command continues what is there."""
    images: str | None = None
    """cifar10, shapes, parquet:URI or folder:PATH."""
    teacher: str | None = None
    """Directory of a teacher's checkpoint; without one, a teacher is trained."""
    teacher_epochs: int | None = None
    limit: int | None = None
    """Only this many images go into the store."""
    steps: int | None = None
    """Integration steps of integrated gradients."""
    arms: tuple[Arm, ...] = ("student", "kd", "kd+ig")
    seeds: tuple[int, ...] = (0,)
    """A student of every arm for each of them."""
    cut: int | None = None
    """Trailing layers removed from the teacher's architecture."""
    epochs: int | None = None
    """Of every student."""
    workers: int | None = None
    """Data-parallel workers of each training."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The configurations of a pipeline's jobs."""

    teacher: TeacherConfig | None
    """None where a teacher is given."""
    precompute: PrecomputeConfig
    students: tuple[DistillConfig, ...]
    images_per_class: int
    """Pictures of each class whose maps the report compares with the ground truth."""


def demo(out: str) -> Pipeline:
    """Everything once on built-in pictures: half-width networks at half resolution, few images, few integration steps.

    alpha is not the paper's 0.01, at which distillation hardly shows in so short a run.
    """
    images = "shapes:train=3000,test=1000"
    return Pipeline(
        teacher=TeacherConfig(images=images, out=f"{out}/teacher", epochs=10, learning_rate=0.02, batch_size=32, width=0.5, stride=2),
        precompute=PrecomputeConfig(images=images, teacher=f"{out}/teacher", store=f"{out}/store", steps=16, limit=600, rows_per_file=50),
        students=(DistillConfig(store=f"{out}/store", test_images=images, out=f"{out}/students", cut=5, epochs=16, alpha=0.5),),
        images_per_class=2,
    )


def cifar10(out: str) -> Pipeline:
    """The paper's protocol on all of CIFAR-10."""
    return Pipeline(
        teacher=TeacherConfig(images="cifar10", out=f"{out}/teacher"),
        precompute=PrecomputeConfig(images="cifar10", teacher=f"{out}/teacher", store=f"{out}/store"),
        students=(DistillConfig(store=f"{out}/store", test_images="cifar10", out=f"{out}/students"),),
        images_per_class=10,
    )


PRESETS = {"demo": demo, "cifar10": cifar10}


def make_pipeline(config: PipelineConfig) -> Pipeline:
    """The preset with what the command line changes; one student configuration for each arm and seed."""
    if not config.arms or not config.seeds:
        raise UserError("--arms and --seeds must name at least one each")
    preset = PRESETS[config.preset](config.out)

    def changed(part: S, **values: object) -> S:
        return replace(part, **{k: v for k, v in values.items() if v is not None})  # type: ignore[type-var]

    assert preset.teacher is not None
    students = changed(preset.students[0], test_images=config.images, cut=config.cut, epochs=config.epochs, workers=config.workers)
    runs = tuple(
        replace(students, arm=arm, seed=seed, out=f"{students.out}/{arm}-seed{seed}")
        for arm in dict.fromkeys(config.arms)
        for seed in dict.fromkeys(config.seeds)
    )
    return Pipeline(
        teacher=None
        if config.teacher
        else changed(preset.teacher, images=config.images, epochs=config.teacher_epochs, workers=config.workers),
        precompute=changed(
            preset.precompute, images=config.images, teacher=config.teacher, limit=config.limit, steps=config.steps, cut=config.cut
        ),
        students=runs,
        images_per_class=preset.images_per_class,
    )


T = TypeVar("T")
S = TypeVar("S")


def parse(config: type[T], prog: str) -> T:
    """A configuration from the command line."""
    return tyro.cli(config, prog=f"python -m {prog}")
