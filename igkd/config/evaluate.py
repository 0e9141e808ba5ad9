"""Settings of `igkd evaluate`."""

from dataclasses import dataclass

from igkd.base.choices import BadImages, Split
from igkd.base.errors import UserError
from igkd.base.settings import check_out


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a checkpoint on any images of its classes: accuracy and calibration; with --teacher, agreement with the teacher; with
    --maps, its attribution maps."""

    checkpoint: str
    """Directory of a student's or teacher's checkpoint."""
    images: str
    """cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN] or folder:PATH, of the same classes. Pictures of another size are
    scaled and cropped to the checkpoint's."""
    split: Split = "test"
    """Which of the source's images."""
    teacher: str | None = None
    """Directory of the teacher's checkpoint, to compare with."""
    maps: int = 0
    """Number of images, stratified by class, whose integrated-gradients maps are computed and evaluated: 0, or at least 2."""
    steps: int = 50
    """Integration steps of integrated gradients."""
    limit: int | None = None
    """Only this many images: a random choice, stratified by class, fixed by their ids."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""
    out: str | None = None
    """JSON file of the result; without it, only a table is printed."""

    def __post_init__(self) -> None:
        check_out(self.out, "file")
        if self.steps < 1 or (self.limit is not None and self.limit < 1):
            raise UserError("--steps and --limit must be at least 1")
