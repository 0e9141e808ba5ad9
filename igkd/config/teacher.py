"""Settings of jobs.teacher."""

from dataclasses import dataclass, field

from igkd.base.choices import BadImages, Precision
from igkd.base.errors import UserError
from igkd.base.settings import PLACE, RUN, SPEED
from igkd.config.optimisation import Recipe


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Train a teacher, by one-cycle SGD, on all training images but the validation split: from random weights, or from those of --init."""

    images: str = field(metadata=PLACE)
    """cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN] or folder:PATH."""
    out: str = field(metadata=PLACE)
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
    """Decay at each step of a moving average of the weights, which becomes the teacher; 0 for none."""
    cutout: int = 0
    """Side in pixels of a grey square that hides a part of every training image; 0 for none."""
    precision: Precision = "auto"
    """auto is bfloat16 autocast if the device has instructions for bfloat16, else float32; decided once, when a run starts."""
    compile: bool = field(default=False, metadata=SPEED)
    """Compile the training step by torch.compile: a minute at the start, for a faster step; needs a C++ compiler."""
    keep_epochs: tuple[int, ...] = field(default=(), metadata=SPEED)
    """After these epochs, leave a checkpoint in OUT/epoch-N, too: a half-trained teacher often teaches better."""
    network: str = "mobilenet"
    """mobilenet, the paper's MobileNet-V2; mobilenet:width=0.5,stride=2 has half the channels, and a first layer of stride 2, for images
    larger than about 32 pixels a side; lean:1:64x2,128x2,256x2 is a residual network (stride of the first layer, then WIDTHxBLOCKS);
    torchvision:NAME, timm:NAME; or one of your own, module:PACKAGE.MODULE:FUNCTION."""
    init: str | None = field(default=None, metadata=PLACE)
    """Weights to start from: a file, a checkpoint's directory, or default for the family's own. A last layer for another number of classes
    is made anew; pictures are prepared as these weights' were, at their size unless --image-size gives another."""
    head_learning_rate: float | None = None
    """Peak of the last layer's learning rate; by default the same as --learning-rate."""
    freeze_norms: bool = False
    """Leave the statistics of batch normalisations as --init has them."""
    image_size: int | None = None
    """Scale and crop every picture to this many pixels a side; needed where sizes are mixed."""
    bad_images: BadImages = field(default="refuse", metadata=SPEED)
    """What to do with an image that cannot be used."""
    seed: int = field(default=0, metadata=RUN)
    workers: int = field(default=1, metadata=SPEED)
    """Data-parallel workers."""
    min_workers: int | None = field(default=None, metadata=SPEED)
    """Elastic training: continue with as few workers as this if nodes are lost, and with up to --workers when nodes return."""

    def __post_init__(self) -> None:
        if self.freeze_norms and self.init is None:
            raise UserError("--freeze-norms keeps the statistics of trained weights: name them by --init")
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
            head_factor=1.0 if self.head_learning_rate is None else self.head_learning_rate / self.learning_rate,
            freeze_norms=self.freeze_norms,
        )
