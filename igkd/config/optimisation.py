"""Settings of training: how the weights are optimised, and what the network learns from."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Literal

from igkd.base.choices import Content, Crop, Explanation, Logits, Optimizer, Precision, Schedule
from igkd.base.errors import UserError
from igkd.base.settings import SPEED

MAX_RATE = 1e30
"""Largest learning rate and weight decay: float32, in which they are used, ends at some 1e38. Any that trains a network is far below."""
LEAST_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1000
"""Beyond these, the loss of distillation is rounding: its divergence in float32 is multiplied by the temperature's square."""
LOW_RESOLUTION = 0.75
"""Factor on the sides of the images in epochs of low resolution."""


@dataclass(frozen=True, kw_only=True)
class FewCrops:
    """The random crops of each image whose teacher's logits a store has; the same for all runs on that store."""

    count: int
    """Number of crops of each image."""
    seed: int
    """Seed from which, with the image's id, the crops are computed."""
    resized: bool = False
    """Whether they are resized crops instead of padded ones."""


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How a network is trained: settings that jobs.teacher and jobs.distill share. The defaults are those of the paper's students."""

    optimizer: Optimizer = "adam"
    """sgd has Nesterov momentum 0.9."""
    schedule: Schedule = "constant"
    """Schedule of the learning rate: constant, or one cycle of warm-up and cosine."""
    epochs: int = 100
    """Passes over the training images."""
    learning_rate: float = 1e-3
    """Constant, or the cycle's peak."""
    weight_decay: float = 0.0
    """L2 penalty of the weights, as torch.optim has it."""
    batch_size: int = 64
    """Images a step, over all workers together."""
    crop: Crop = "auto"
    """What the network sees of an image: padded, a crop of the image with --padding pixels of black around it; resized, 35 to 100 % of its
    area at a random place, scaled to its size; auto is resized for images above 64 pixels a side. With --logits views of a few crops, auto
    is the crops of the store."""
    padding: int = 4
    """Padding of a padded crop, in pixels on each side."""
    cutout: int = 0
    """Side in pixels of a grey square that hides a part of every training image (DeVries, Taylor 2017); 0 for none."""
    averaging: float = 0.0
    """Decay at each step of a moving average of the weights, which becomes the network; 0 for none."""
    label_smoothing: float = 0.0
    """Share of a label's weight that is spread evenly over all classes (Szegedy et al. 2016); a teacher smoothed so tells its students
    less."""
    low_resolution_epochs: int = 0
    """Epochs at the start trained at 3/4 of the resolution, nearly twice as fast (progressive resizing). A teacher's logits stay those of
    the whole crop."""
    precision: Precision = "auto"
    """Precision of the forward pass in training; auto is bfloat16 autocast if the device has instructions for bfloat16, else float32;
    decided once, when a run starts."""
    compile: bool = field(default=False, metadata=SPEED)
    """Compile the training step by torch.compile: a minute at the start, for a faster step; needs a C++ compiler."""

    head_learning_rate: float | None = None
    """Learning rate of the network's last layer, which is new where the classes are; by default that of the others."""
    freeze_norms: bool = False
    """Leave the statistics of batch normalisations as they are in the weights of --init."""

    @property
    def head_factor(self) -> float:
        """The last layer's learning rate divided by that of the others."""
        return 1.0 if self.head_learning_rate is None else self.head_learning_rate / self.learning_rate

    @property
    def lowest_scale(self) -> float:
        """The smallest factor on the sides of the images in any epoch."""
        return LOW_RESOLUTION if self.low_resolution_epochs else 1.0

    def left_after(self, epoch: int) -> float:
        """The number of epochs left after an epoch, each counted by the pixels that it has for one of that epoch."""
        low = self.low_resolution_epochs
        left_low, left = max(0, low - epoch), self.epochs - max(low, epoch)
        return left_low + left * (LOW_RESOLUTION**-2 if epoch <= low else 1.0)

    @property
    def optimisation(self) -> "Optimisation":
        """These settings alone, without those that a subclass adds."""
        return Optimisation(**{one.name: getattr(self, one.name) for one in fields(Optimisation)})

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not 0 < self.learning_rate <= MAX_RATE:
            raise UserError(f"epochs and batch-size must be at least 1, the learning rate above 0 and at most {MAX_RATE:g}")
        if not 0 <= self.low_resolution_epochs <= self.epochs:
            raise UserError(f"--low-resolution-epochs {self.low_resolution_epochs} must be between 0 and all --epochs, {self.epochs}")
        if self.head_learning_rate is not None and not 0 < self.head_learning_rate <= MAX_RATE:
            raise UserError(f"the learning rate of the last layer must be above 0 and at most {MAX_RATE:g}")
        if not 0 <= self.weight_decay <= MAX_RATE:
            raise UserError(f"the weight decay must be between 0 and {MAX_RATE:g}, not {self.weight_decay}")
        if self.padding < 0:
            raise UserError(f"--padding must be at least 0 pixels, not {self.padding}")
        if self.cutout < 0 or not 0 <= self.averaging < 1 or not 0 <= self.label_smoothing < 1:
            raise UserError("cutout must be at least 0, averaging and label smoothing at least 0 and below 1")


def low_resolution_of(epochs: int, low: int, before: int) -> int:
    """How many of a run's `epochs` are of low resolution, in proportion to a recipe with `low` of `before`."""
    return round(low * epochs / before)


def check_frozen(freeze_norms: bool, init: str | None) -> None:
    """Raise UserError if the statistics of a network are to stay that has none yet."""
    if freeze_norms and init is None:
        raise UserError("--freeze-norms keeps the statistics of trained weights: name them by --init")


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
    explanation: Explanation = "ig"
    """Which of the teacher's maps is laid over and compared with."""
    content: Content = "own"
    """What is laid over, and what the student's map is compared with: the image's own map, or a control."""
    overlay_schedule: Literal["constant", "rising", "falling"] = "constant"
    """How the overlay's probability changes over a run: constant, linearly from 0 to its double, or the reverse; its mean is the same."""
    map_weight: float = 0.0
    """Weight of 1 - cosine of the student's own map and the teacher's."""
    map_every: int = 4
    """The maps are compared in every so manyth step of a run."""
    map_cell: int = 4
    """Side in pixels of the cells over which both maps are averaged before they are compared."""
    dkd: float = 0.0
    """Weight of decoupled distillation."""
    beta: float = 8.0
    """In decoupled distillation, weight of the part about the classes other than the label."""
    lskd: float = 0.0
    """Weight of distillation from standardised logits."""
    feature_weight: float = 0.0
    """Weight of feature distillation, which needs a live teacher."""
    uncropped_maps: bool = False
    """Leave map and attention as they are where the image is cropped and flipped, as the published code does."""
    logits: Logits = "image"
    """What the teacher says of: the whole image, as the store has it; the crop that the student sees, as the store has it (views); or that
    crop, asked in training (live)."""
    crops: FewCrops | None = None
    """The crops of which one is used in each epoch; None for any that the padding allows."""
    tap: str | None = None
    """Path of the student's layer whose attention or features are compared, such as features.9; needed for either."""
    tap_channels: tuple[int, int] | None = None
    """Channels of the student's and the teacher's layer; needed for feature distillation."""
    teacher_tap: str | None = None
    """Path of the teacher's layer that it is compared with; needed with a live teacher."""

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.overlay <= 1 and 0 <= self.blend <= 1 and 0 <= self.gamma < inf):
            raise UserError("alpha, overlay and blend must be between 0 and 1, gamma a number of at least 0")
        if not LEAST_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise UserError(f"the temperature must be between {LEAST_TEMPERATURE} and {MAX_TEMPERATURE}, not {self.temperature}")
        if not all(0 <= weight < inf for weight in (self.dkd, self.beta, self.lskd, self.feature_weight)):
            raise UserError("dkd, beta, lskd and feature-weight must be numbers of at least 0")
        if not 0 <= self.map_weight < inf or self.map_every < 1 or self.map_cell < 1:
            raise UserError("map-weight must be a number of at least 0, map-every and map-cell at least 1")
        if self.map_weight > 0 and self.content == "black":
            raise UserError("a black map points nowhere, so no map can be compared with it: choose another --content for an arm with map")
        if self.overlay_schedule != "constant" and self.overlay > 0.5:
            raise UserError(f"an overlay of {self.overlay} cannot rise to twice as much; choose at most 0.5 with --overlay-schedule")
        if not 0 < self.exponents[0] <= self.exponents[1]:
            raise UserError(
                f"exponents {self.exponents[0]} {self.exponents[1]} are no range: the first must be above 0 and not above the second"
            )
