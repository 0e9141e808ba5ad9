"""Settings of `igkd import`."""

from dataclasses import dataclass

import tyro

from igkd.base.choices import BadImages
from igkd.base.errors import UserError
from igkd.base.settings import check_out


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Make a checkpoint, which every job takes, of a network that was trained elsewhere; and judge it on images, so that a wrong order of
    classes or a wrong normalisation is seen at once."""

    network: tyro.conf.Positional[str]
    """torchvision:NAME, timm:NAME, module:PACKAGE.MODULE:FUNCTION (runs that function), or a network of our own, such as mobilenet."""
    out: str
    """Directory of the checkpoint."""
    images: str
    """Images to judge it on: cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN], folder:PATH or hf:OWNER/NAME."""
    weights: str = "default"
    """A file (.safetensors, or .pth, .pt, .bin as torch.save writes a state_dict), or default for the network's own weights."""
    classes: str | None = None
    """The names of its classes in the order of its logits: a text file with a name on each line, a JSON list, or --images whose classes
    they are. Without it they are those that the network knows (ImageNet's), or else those of --images."""
    class_map: str | None = None
    """JSON or CSV file that says which of the network's classes (its name, or its number from 0) each class of the images is; the
    checkpoint's classes then have the images' names."""
    image_size: int | None = None
    """Side in pixels of the pictures that it was trained on; by default the network's own."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from pixels in [0, 1], for red, green and blue; by default the network's own."""
    std: tuple[float, float, float] | None = None
    """Divides the pixels after that; by default the network's own."""
    limit: int = 1000
    """At most this many test images: a random choice, stratified by class, fixed by their ids."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""

    def __post_init__(self) -> None:
        check_out(self.out)
        if self.limit < 1 or (self.image_size is not None and self.image_size < 1):
            raise UserError("--limit and --image-size must be at least 1")
        if self.std is not None and not min(self.std) > 0:
            raise UserError("--std must be above 0")
