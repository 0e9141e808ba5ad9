"""Settings of `igkd explain`."""

from dataclasses import dataclass

from igkd.base.choices import BadImages, Split
from igkd.base.errors import UserError
from igkd.base.settings import check_out


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Draw teacher's and student's integrated-gradients maps and answers side by side, for any image, as an HTML page."""

    checkpoint: str
    """Directory of a student's or teacher's checkpoint."""
    images: str
    """A picture's file, a directory of pictures without classes, or cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN] or
    folder:PATH of the checkpoint's classes. Pictures of another size are scaled and cropped to the checkpoint's."""
    out: str
    """The page: NAME.html."""
    teacher: str | None = None
    """Directory of the teacher's checkpoint, or torchvision:NAME; by default the teacher that the checkpoint names, or that of the
    store that it learned from."""
    split: Split = "test"
    """Which of the source's images."""
    limit: int = 20
    """At most this many images: a random choice, stratified by class, fixed by their ids."""
    ids: tuple[int, ...] | None = None
    """These images instead, in this order: places in the split, or among the directory's pictures sorted by name, from 0."""
    steps: int = 50
    """Integration steps of integrated gradients."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""

    def __post_init__(self) -> None:
        check_out(self.out, "file")
        if self.steps < 1 or self.limit < 1:
            raise UserError("--steps and --limit must be at least 1")
        if self.ids is not None and (not self.ids or len(set(self.ids)) < len(self.ids)):
            raise UserError("--ids must name at least one image, and none of them twice")
        if not self.out.endswith(".html"):
            raise UserError(f"--out {self.out} is no page: its name must end in .html")
