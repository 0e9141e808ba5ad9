"""Settings of jobs.teacher."""

from dataclasses import dataclass, field

from igkd.base.choices import BadImages, Optimizer, Schedule
from igkd.base.errors import UserError
from igkd.base.settings import PLACE, RUN, SPEED, check_out, check_seeds, check_side
from igkd.config.optimisation import Optimisation, check_frozen


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Optimisation):
    """Train a teacher on all training images but the validation split: from random weights, or from those of --init."""

    images: str = field(metadata=PLACE)
    """cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN], folder:PATH or hf:OWNER/NAME."""
    out: str = field(metadata=PLACE)
    """Directory of the checkpoint and its result; the same command continues what is there."""
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "one-cycle"
    epochs: int = 200
    """Passes over the training images."""
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    """L2 penalty of the weights, as torch.optim has it."""
    batch_size: int = 128
    keep_epochs: tuple[int, ...] = field(default=(), metadata=SPEED)
    """After these epochs, leave a checkpoint in OUT/epoch-N, too: a half-trained teacher often teaches better."""
    network: str = "mobilenet"
    """mobilenet, the paper's MobileNet-V2; mobilenet:width=0.5,stride=2 has half the channels, and a first layer of stride 2, for images
    larger than about 32 pixels a side; lean:1:64x2,128x2,256x2 is a residual network (stride of the first layer, then WIDTHxBLOCKS),
    airbench:64,256,256 one that learns small pictures in few epochs (widths of its blocks); homogeneous:1:64x2,128x2,256x2 and
    homogeneous:airbench:64,256,256 are the same without biases, whose maps take one pass; torchvision:NAME, timm:NAME; or one of your own,
    module:PACKAGE.MODULE:FUNCTION."""
    init: str | None = field(default=None, metadata=PLACE)
    """Weights to start from: a file, a checkpoint's directory, or default for the family's own. A last layer for another number of classes
    is made anew; pictures are prepared as these weights' were, at their size unless --image-size gives another."""
    image_size: int | None = None
    """Scale and crop every picture to this many pixels a side; needed where sizes are mixed."""
    bad_images: BadImages = field(default="refuse", metadata=SPEED)
    """What to do with an image that cannot be used."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of the first weights, and of the order and the crops of the images."""
    workers: int = field(default=1, metadata=SPEED)
    """Data-parallel workers."""
    min_workers: int | None = field(default=None, metadata=SPEED)
    """Elastic training: continue with as few workers as this if nodes are lost, and with up to --workers when nodes return."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_out(self.out)
        check_frozen(self.freeze_norms, self.init)
        check_seeds(self.seed)
        check_side(self.image_size)
        if not all(1 <= epoch <= self.epochs for epoch in self.keep_epochs):
            raise UserError(f"--keep-epochs {' '.join(map(str, self.keep_epochs))}: they must be between 1 and --epochs {self.epochs}")
