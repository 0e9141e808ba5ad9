"""Settings of jobs.distill."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from igkd.base.choices import LOGIT_PARTS, MAP_PARTS, Arm, BadImages, Content, Explanation, Logits, canonical_arm, parts_of
from igkd.base.errors import UserError
from igkd.base.settings import PLACE, RUN, SPEED, check_out, check_seeds
from igkd.config.optimisation import Objective, Optimisation, check_frozen


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Optimisation):
    """Distil one student from a store. Settings that are not on the command line have the recipe's values."""

    store: str = field(metadata=PLACE)
    """Directory or s3:// URI of the attribution store."""
    out: str = field(metadata=PLACE)
    """Directory of the checkpoint and its result; the same command continues what is there."""
    test_images: str | None = field(default=None, metadata=PLACE)
    """Images on whose test split the student is evaluated once, at the end; without them, only the validation split is used."""
    recipe: str = field(default="paper", metadata=RUN)
    """paper, paper-as-published (with its errors), strong (200 epochs), strong-cpu (30), strong-night (10), or a JSON file of settings."""
    arm: Arm = field(default="kd+ig", metadata=RUN)
    """What the student learns from besides the labels: student = nothing, or a sum in any order, such as kd+ig+at, of kd = logits,
    ig = overlay of maps, at = attention, map = maps as targets of its own, dkd = logits, decoupled, lskd = logits, standardised,
    feat = features of a layer. Each part has a weight of its own."""
    student: str = field(default="mobilenet:cut=5", metadata=RUN)
    """The student's network: mobilenet:cut=N is the paper's without its last 3, 5, 7, 9, 11, 13, 15 or 17 layers, as wide as its teacher;
    lean:2:32x1,64x1,96x2 is a residual network made for speed (stride of the first layer, then WIDTHxBLOCKS of each stage), of which
    jobs.search finds good ones; airbench:32,128,128 learns small pictures in few epochs (widths of its blocks); torchvision:NAME,
    timm:NAME; or one of your own, module:PACKAGE.MODULE:FUNCTION. scaled:24:NAME is NAME, which sees the crops at 24 pixels a side."""
    init: str | None = field(default=None, metadata=PLACE)
    """Weights to start from instead of random ones: a file, a checkpoint's directory, or default for the family's own. A last layer for
    another number of classes is made anew."""
    taps: tuple[str, str] | None = field(default=None, metadata=RUN)
    """Paths of the layers that attention transfer compares, the student's and the teacher's; by default the deepest ones of equal size."""
    teacher: str | None = field(default=None, metadata=PLACE)
    """Directory of the teacher's checkpoint: for --live, and to compare the student with at the end."""
    normalise: bool = False
    """Whether the student sees pixels of mean 0 and standard deviation 1 instead of those in [0, 1]."""
    alpha: float = 0.01
    """Weight of distillation in the arms with kd."""
    temperature: float = 2.5
    """Temperature of distillation in the arms with kd, dkd or lskd."""
    dkd: float = 1.0
    """Weight of decoupled distillation in the arms with dkd (Zhao et al. 2022: 1, at temperature 4); the labels keep the weight 1."""
    beta: float = 8.0
    """Weight, within dkd, of what the teacher says of the classes other than the label, as by the authors for CIFAR-100."""
    lskd: float = 1.0
    """Weight of distillation from standardised logits in the arms with lskd (Sun et al. 2024: 9, at temperature 2)."""
    feature_weight: float = 1.0
    """Weight of the mean squared difference of features in the arms with feat, in which the teacher runs along (--live)."""
    logits: Literal["auto", "image", "views", "crop"] = "auto"
    """Which of the store's logits to learn from: those of the whole image, or those of the crop that the student sees (views), which is
    as if the teacher were asked in training, but costs nothing. auto: views where the store has them, else image; crop: views where the
    store has them, else --live."""
    live: bool = False
    """Compute the teacher's logits of the student's crop during training; needs --teacher."""
    gamma: float = 0.8
    """Weight of attention transfer in the arms with at; Zagoruyko and Komodakis use 1000."""
    overlay: float = 0.1
    """Probability of the overlay in the arms with ig."""
    exponents: tuple[float, float] = (1.0, 2.0)
    """Range of the overlay's exponent."""
    blend: float = 0.5
    """Weight of the overlay."""
    map_weight: float = 1.0
    """Weight of 1 - cosine of the student's own map (input x gradient) and the teacher's in the arms with map."""
    map_every: int = 4
    """In the arms with map, compare maps in every so manyth step only: such a step is several times as slow."""
    map_cell: int = 4
    """In the arms with map, average both maps over cells of so many pixels a side before they are compared."""
    explanation: Explanation = field(default="ig", metadata=RUN)
    """Which of the store's maps the arms with ig or map use: ig, the attribution map; gradcam, the Grad-CAM, if the store has it."""
    content: Content = field(default="own", metadata=RUN)
    """What is laid over an image in the arms with ig, and what its map is compared with in those with map: its own map, or as a control
    another image's map, black, the map's pixels in random order, the ground-truth mask, or an even grey as bright as the map."""
    overlay_schedule: Literal["constant", "rising", "falling"] = "constant"
    """How the overlay's probability changes over the run; its mean is the same."""
    aligned: bool = True
    """False mixes up maps, logits and attention as the published code does: maps are another image's, logits and attention those of a third
    one, and neither map nor attention is cropped with the image."""
    ingest: Literal["auto", "resident", "stream"] = "auto"
    """Keep all rows in memory, or stream them from the store; auto streams what would fill more than half of the memory."""
    maps: int = field(default=0, metadata=SPEED)
    """Number of test images whose integrated-gradients maps are evaluated at the end, and compared with those of --teacher."""
    bad_images: BadImages = field(default="refuse", metadata=SPEED)
    """What to do with a test image that cannot be used."""
    share: float = field(default=1.0, metadata=RUN)
    """Share of the store's training images to learn from: a random choice, stratified by class, that depends on the seed."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of the first weights, and of the order, the crops and the overlay of the images."""
    workers: int = field(default=1, metadata=SPEED)
    """Data-parallel workers."""
    min_workers: int | None = field(default=None, metadata=SPEED)
    """Elastic training: continue with as few workers as this if nodes are lost, and with up to --workers when nodes return."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_out(self.out)
        object.__setattr__(self, "arm", canonical_arm(self.arm))
        check_frozen(self.freeze_norms, self.init)
        check_seeds(self.seed)
        if "feat" in parts_of(self.arm):  # no store has features
            object.__setattr__(self, "live", True)
        if self.live and self.logits == "views":
            raise UserError("--live asks the teacher in training, --logits views takes its answers from the store: give one of them")
        if not 0 < self.share <= 1:
            raise UserError(f"--share must be above 0 and at most 1, not {self.share}")

    @property
    def label(self) -> str:
        """The run's name in tables among runs of the same network: arm, control and recipe."""
        used = not MAP_PARTS.isdisjoint(parts_of(self.arm))
        explanation = f", {self.explanation}" if used and self.explanation != "ig" else ""
        content = f", {self.content}" if used and self.content != "own" else ""
        return self.arm + explanation + content + ("" if self.recipe == "paper" else f", {Path(self.recipe).stem}")

    @property
    def which_logits(self) -> Logits:
        """The logits that the run learns from; for auto and crop, which depend on the store, those used if the store has no views."""
        if (LOGIT_PARTS | {"feat"}).isdisjoint(parts_of(self.arm)):
            return "image"
        return "live" if self.live or self.logits == "crop" else "views" if self.logits == "views" else "image"

    @property
    def objective(self) -> Objective:
        """The settings that this arm uses; terms that the arm lacks have weight 0. `tap` is not set: it depends on the teacher."""
        parts = parts_of(self.arm)
        return Objective(
            alpha=self.alpha if "kd" in parts else 0.0,
            temperature=self.temperature,
            dkd=self.dkd if "dkd" in parts else 0.0,
            beta=self.beta,
            lskd=self.lskd if "lskd" in parts else 0.0,
            feature_weight=self.feature_weight if "feat" in parts else 0.0,
            gamma=self.gamma if "at" in parts else 0.0,
            overlay=self.overlay if "ig" in parts else 0.0,
            exponents=self.exponents,
            blend=self.blend,
            map_weight=self.map_weight if "map" in parts else 0.0,
            map_every=self.map_every,
            map_cell=self.map_cell,
            explanation=self.explanation,
            content=self.content,
            overlay_schedule=self.overlay_schedule,
            uncropped_maps=not self.aligned,
            logits=self.which_logits,
        )
