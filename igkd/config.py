"""Settings of every job, with their defaults: the one place where defaults live. `jobs` turn them into command lines."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal, TypeVar, get_args

import tyro

from igkd import lean
from igkd.attribution import Engine, Method
from igkd.deadline import check_limit
from igkd.errors import UserError
from igkd.models import attention_layer

Arm = Literal["student", "kd", "ig", "kd+ig", "at", "kd+at", "ig+at", "kd+ig+at"]
ARMS: tuple[Arm, ...] = get_args(Arm)
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "one-cycle"]
Precision = Literal["auto", "float32", "bfloat16"]
Content = Literal["own", "other", "black", "noise", "mask", "brightness"]
BadImages = Literal["refuse", "skip"]
Logits = Literal["image", "views", "live"]
Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class FewCrops:
    """Some random crops of each image, drawn once for all runs: those of which a store has the teacher's logits."""

    count: int
    """Of each image."""
    seed: int
    """From which, with the image's id, their places follow."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained."""

    optimizer: Optimizer
    """sgd has Nesterov momentum 0.9."""
    schedule: Schedule
    """Of the learning rate: constant, or one cycle of warm-up and cosine."""
    learning_rate: float
    """Constant, or the cycle's peak."""
    weight_decay: float
    epochs: int
    batch_size: int
    """Images a step, over all workers together."""
    padding: int = 4
    """Pixels of random crop on each side."""
    cutout: int = 0
    """Side in pixels of a grey square that hides a part of every training image (DeVries, Taylor 2017); 0 for none."""
    averaging: float = 0.0
    """Decay by step of an exponential moving average of the weights, which is then the network; 0 for none."""
    precision: Precision = "auto"
    """Of the forward pass in training; auto is bfloat16 autocast where the device multiplies in bfloat16 by itself, else float32."""
    low_resolution_epochs: int = 0
    """Epochs at the start trained at 3/4 of the resolution: nearly twice as fast (progressive resizing)."""
    label_smoothing: float = 0.0
    """Share of a label's weight that is spread evenly over all classes (Szegedy et al. 2016)."""
    compile: bool = False
    """Compile the training step by torch.compile."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not 0 < self.learning_rate < inf or not 0 <= self.low_resolution_epochs <= self.epochs:
            raise UserError(
                "epochs and batch-size must be at least 1, the learning rate above 0, low-resolution epochs at most all of them"
            )
        if not 0 <= self.weight_decay < inf:
            raise UserError(f"the weight decay must be a number of at least 0, not {self.weight_decay}")
        if self.cutout < 0 or not 0 <= self.averaging < 1 or not 0 <= self.label_smoothing < 1:
            raise UserError("cutout must be at least 0, averaging and label smoothing at least 0 and below 1")


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
    blend: float = 0.5
    """Weight of what is laid over the image, which keeps the rest."""
    content: Content = "own"
    """What is laid over: the image's own map, or a control."""
    overlay_schedule: Literal["constant", "rising", "falling"] = "constant"
    """The probability over a run: as it is, or linearly from 0 to twice as much, or back; its mean is the same."""
    uncropped_maps: bool = False
    """Leave map and attention as they are where the image is cropped and flipped, as the published code does."""
    logits: Logits = "image"
    """What the teacher says of: the whole image, as the store has it; the crop that the student sees, as the store has it (views); or that
    crop, asked in training (live)."""
    crops: FewCrops | None = None
    """The crops of which one is seen in each epoch; None: any that the padding allows."""
    tap: int | None = None
    """Index of the layer whose attention is transferred; needed where gamma is above 0."""

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.overlay <= 1 and 0 <= self.blend <= 1 and self.gamma >= 0 and self.temperature > 0):
            raise UserError("alpha, overlay and blend must be between 0 and 1, gamma at least 0, the temperature above 0")
        if self.overlay_schedule != "constant" and self.overlay > 0.5:
            raise UserError(f"an overlay of {self.overlay} cannot rise to twice as much; choose at most 0.5 with --overlay-schedule")
        if not 0 < self.exponents[0] <= self.exponents[1]:
            raise UserError(
                f"exponents {self.exponents[0]} {self.exponents[1]} are no range: the first must be above 0 and not above the second"
            )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Train a teacher: a whole MobileNet-V2 or a residual network, by one-cycle SGD, on all training images but the validation split."""

    images: str
    """cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN] or folder:PATH."""
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
    label_smoothing: float = 0.0
    """Share of a label's weight that is spread evenly over all classes; a teacher smoothed so tells its students less."""
    averaging: float = 0.0
    """Decay by step of a moving average of the weights, which is then the teacher; 0 for none."""
    cutout: int = 0
    """Side in pixels of a grey square that hides a part of every training image; 0 for none."""
    precision: Precision = "auto"
    """auto is bfloat16 autocast where the device multiplies in bfloat16 by itself, else float32; decided once, when a run begins."""
    compile: bool = False
    """Compile the training step by torch.compile: a minute at the start, for a faster step; needs a C++ compiler."""
    keep_epochs: tuple[int, ...] = ()
    """After these epochs, leave a checkpoint in OUT/epoch-N, too: a half-trained teacher often teaches better."""
    lean: str = ""
    """Instead of a MobileNet-V2, for which --width and --stride are: a residual network, such as 1:64x2,128x2,256x2 (stride of the stem,
    then WIDTHxBLOCKS of each stage)."""
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
    min_workers: int | None = None
    """Elastic: go on with as few as this many where nodes are lost, and with up to --workers when there are nodes again."""

    def __post_init__(self) -> None:
        if self.lean:
            lean.parse(self.lean)
        if not all(1 <= epoch <= self.epochs for epoch in self.keep_epochs):
            raise UserError(f"--keep-epochs {' '.join(map(str, self.keep_epochs))}: they must be between 1 and --epochs {self.epochs}")

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            optimizer="sgd",
            schedule="one-cycle",
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            batch_size=self.batch_size,
            low_resolution_epochs=self.low_resolution_epochs,
            label_smoothing=self.label_smoothing,
            averaging=self.averaging,
            cutout=self.cutout,
            precision=self.precision,
            compile=self.compile,
        )


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Compute the attribution store: maps, logits and attention of a teacher for every image."""

    images: str
    """cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN] or folder:PATH."""
    teacher: str
    """Directory of the teacher's checkpoint, or torchvision:NAME for one trained on ImageNet, which takes images of its own size."""
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
    """captum is the reference; fast gives the same maps sooner: by torch on a GPU or where OpenVINO is not installed or fails with this
    teacher, by openvino else, with the backward pass in bfloat16 where the processor of the driver has that."""
    cut: int = 5
    """Student cut whose attention layer is tapped."""
    precision: Literal["float16", "float32"] = "float16"
    """How maps are stored."""
    views: str = "none"
    """The teacher's logits of crops, too, for students to learn from as if it were asked in training: all that --padding allows, or a
    number of random ones for each image. May be added to a finished store, by the same command."""
    padding: int = 4
    """Pixels of random crop on each side that these views allow."""
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
    """Distil one student from a store. What is left out of the command line has the recipe's value."""

    store: str
    """Directory or s3:// URI of the attribution store."""
    out: str
    """Directory of the checkpoint and its result; the same command continues what is there."""
    test_images: str | None = None
    """Images whose test split the student is judged by once, at the end; without it, by the validation split alone."""
    recipe: str = "paper"
    """paper, paper-as-published (with its errors), strong, strong-night (a short one), or a JSON file of settings."""
    arm: Arm = "kd+ig"
    """What the student learns from besides the labels: kd = logits, ig = overlay of maps, at = attention."""
    cut: int = 5
    """Trailing layers removed from the teacher's architecture: 3, 5, 7, 9, 11, 13, 15 or 17."""
    lean: str = ""
    """Instead of a cut of the teacher, which --cut then does not say: a residual network made for speed, such as 2:32x1,64x1,96x2 (stride
    of the stem, then WIDTHxBLOCKS of each stage); jobs.search finds good ones."""
    teacher: str | None = None
    """Directory of the teacher's checkpoint: for --live, and to compare the student with at the end."""
    optimizer: Optimizer = "adam"
    """sgd has Nesterov momentum 0.9."""
    schedule: Schedule = "constant"
    """Of the learning rate."""
    epochs: int = 100
    learning_rate: float = 1e-3
    """Constant, or the cycle's peak."""
    weight_decay: float = 0.0
    batch_size: int = 64
    """Images a step, over all workers together."""
    normalise: bool = False
    """Whether the student sees pixels of mean 0 and standard deviation 1 instead of those in [0, 1]."""
    padding: int = 4
    """Pixels of random crop on each side."""
    cutout: int = 0
    """Side in pixels of a grey square that hides a part of every training image; 0 for none."""
    averaging: float = 0.0
    """Decay by step of a moving average of the weights, which is then the student; 0 for none."""
    low_resolution_epochs: int = 0
    """Epochs at the start trained at 3/4 of the resolution; the teacher's logits stay those of the whole crop."""
    precision: Precision = "auto"
    """auto is bfloat16 autocast where the device multiplies in bfloat16 by itself, else float32; decided once, when a run begins."""
    compile: bool = False
    """Compile the training step by torch.compile: a minute at the start, for a faster step; needs a C++ compiler."""
    alpha: float = 0.01
    """Weight of distillation in the arms with kd."""
    temperature: float = 2.5
    logits: Literal["auto", "image", "views", "crop"] = "auto"
    """Which of the store's logits to learn from: those of the whole image, or those of the crop that the student sees (views), which is
    as if the teacher were asked in training, but costs nothing. auto: views where the store has them, else image; crop: views where the
    store has them, else --live."""
    live: bool = False
    """Distil from what the teacher says of the same crop, asked in training; needs --teacher."""
    gamma: float = 0.8
    """Weight of attention transfer in the arms with at; Zagoruyko and Komodakis use 1000."""
    overlay: float = 0.1
    """Probability of the overlay in the arms with ig."""
    exponents: tuple[float, float] = (1.0, 2.0)
    """Range of the overlay's exponent."""
    blend: float = 0.5
    """Weight of the overlay."""
    content: Content = "own"
    """What is laid over an image in the arms with ig: its own map, or as a control another image's map, black, the map's pixels in random
    order, the ground-truth mask, or an even grey as bright as the map."""
    overlay_schedule: Literal["constant", "rising", "falling"] = "constant"
    """The probability over the run; its mean is the same."""
    aligned: bool = True
    """False mixes up maps, logits and attention as the published code does: maps are another image's, logits and attention those of a third
    one, and neither map nor attention is cropped with the image."""
    ingest: Literal["auto", "resident", "stream"] = "auto"
    """Keep all rows in memory, or stream them from the store; auto streams what would fill more than half of the memory."""
    maps: int = 0
    """Test images whose integrated-gradients maps are judged at the end, and compared with those of --teacher."""
    bad_images: BadImages = "refuse"
    """What to do with a test image that cannot be used."""
    share: float = 1.0
    """Share of the store's training images to learn from: a random choice, stratified by class, that depends on the seed."""
    seed: int = 0
    workers: int = 1
    """Data-parallel workers."""
    min_workers: int | None = None
    """Elastic: go on with as few as this many where nodes are lost, and with up to --workers when there are nodes again."""

    def __post_init__(self) -> None:
        if self.live and self.logits == "views":
            raise UserError("--live asks the teacher in training, --logits views takes its answers from the store: give one of them")
        if not 0 < self.share <= 1:
            raise UserError(f"--share must be above 0 and at most 1, not {self.share}")
        if self.lean:
            lean.parse(self.lean)
            if "at" in self.arm.split("+"):
                raise UserError(
                    f"a lean student has no layer that corresponds to one of its teacher's, so {self.arm} cannot transfer attention: "
                    "choose an arm without at"
                )
            object.__setattr__(self, "cut", 0)  # one network has one cut, whatever --cut says that does not apply to it

    @property
    def label(self) -> str:
        """What tells this student from others in a table: arm, architecture where it is no cut, control and recipe."""
        content = "" if self.content == "own" or "ig" not in self.arm.split("+") else f", {self.content}"
        family = f", lean {self.lean}" if self.lean else ""
        return self.arm + family + content + ("" if self.recipe == "paper" else f", {Path(self.recipe).stem}")

    @property
    def which_logits(self) -> Logits:
        """What logits the run learns from. Of a configuration that leaves it to the store (auto, crop), as if the store had no views."""
        if "kd" not in self.arm.split("+"):
            return "image"
        return "live" if self.live or self.logits == "crop" else "views" if self.logits == "views" else "image"

    @property
    def training(self) -> Recipe:
        return Recipe(
            optimizer=self.optimizer,
            schedule=self.schedule,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            batch_size=self.batch_size,
            padding=self.padding,
            cutout=self.cutout,
            averaging=self.averaging,
            precision=self.precision,
            low_resolution_epochs=self.low_resolution_epochs,
            compile=self.compile,
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
            blend=self.blend,
            content=self.content,
            overlay_schedule=self.overlay_schedule,
            uncropped_maps=not self.aligned,
            logits=self.which_logits,
            tap=attention_layer(self.cut) if "at" in parts else None,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Judge a checkpoint on any images of its classes: accuracy, calibration, and with --teacher and --maps how far it answers and looks
    as its teacher does."""

    checkpoint: str
    """Directory of a student's or teacher's checkpoint."""
    images: str
    """cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN] or folder:PATH, of the same classes."""
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

    preset: Literal["demo", "cifar10", "evidence", "evidence-cpu", "evidence-night"]
    """demo: built-in pictures, a few minutes on two cores; cifar10: the paper's protocol, for a GPU; evidence: arms, controls and recipes
    with 3 seeds, for a GPU; evidence-cpu: all of CIFAR-10 with views, two students, four arms and 3 seeds, for days of processors
    (--dry-run says how many); evidence-night: arms, controls and recipes on 3,000 images, for a night of two cores."""
    out: str
    """Directory of everything; the same command continues what is there."""
    images: str | None = None
    """cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN] or folder:PATH."""
    teacher: str | None = None
    """Directory of a teacher's checkpoint; without one, a teacher is trained."""
    teacher_epochs: int | None = None
    limit: int | None = None
    """Only this many images go into the store."""
    steps: int | None = None
    """Integration steps of integrated gradients."""
    arms: tuple[Arm, ...] | None = None
    seeds: tuple[int, ...] | None = None
    """A student of every arm for each of them."""
    recipe: str | None = None
    """Of the students: paper, paper-as-published, strong, or a JSON file of settings. It replaces all of the preset's, epochs included."""
    cut: int | None = None
    """Trailing layers removed from the teacher's architecture."""
    epochs: int | None = None
    """Of every student."""
    image_size: int | None = None
    """Scale and crop every picture to this many pixels a side; needed where sizes are mixed."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""
    workers: int | None = None
    """Data-parallel workers of each training."""
    hours: float | None = None
    """Stop after so many hours; the same command goes on."""
    until: str | None = None
    """Stop at this time of day, such as 07:00; the same command goes on."""
    dry_run: bool = False
    """Only print what would be done, and how long it takes on this machine, from steps measured for a minute or two."""

    def __post_init__(self) -> None:
        check_limit(self.hours, self.until)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The configurations of a pipeline's jobs."""

    teacher: TeacherConfig | None
    """None where a teacher is given."""
    precompute: PrecomputeConfig
    students: tuple[DistillConfig, ...]
    """Of a preset one for each arm, control and recipe, which `seeds` multiply; after that one for each run."""
    seeds: tuple[int, ...] = (0,)
    images_per_class: int
    """Pictures of each class whose maps the report compares with the ground truth."""


T = TypeVar("T")


def parse(config: type[T], prog: str) -> T:
    """A configuration from the command line."""
    return tyro.cli(config, prog=f"python -m {prog}")
