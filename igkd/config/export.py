"""Settings of `igkd export`."""

from dataclasses import dataclass

from igkd.base.choices import SUFFIXES, BadImages, Format
from igkd.base.errors import UserError
from igkd.base.settings import check_out


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a checkpoint as a file for devices, checked against the checkpoint on validation images."""

    checkpoint: str
    """Directory of a student's or teacher's checkpoint."""
    format: Format
    """onnx: float32; onnx-int8: static int8, calibrated on training images; torch-export: for ExecuTorch or AOTInductor."""
    out: str
    """The file: NAME.onnx, or NAME.pt2 for torch-export."""
    images: str | None = None
    """The images it was trained on: cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN] or folder:PATH; by default those that the
    checkpoint names."""
    max_drop: float = 0.01
    """Write nothing if the accuracy on validation images falls by more than this share of them."""
    limit: int | None = None
    """Only this many validation images: a random choice, stratified by class, fixed by their ids."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""

    def __post_init__(self) -> None:
        check_out(self.out, "file")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit must be at least 1, not {self.limit}")
        if not self.out.endswith(SUFFIXES[self.format]):
            raise UserError(f"--out {self.out} does not fit --format {self.format}: its name must end in {SUFFIXES[self.format]}")
