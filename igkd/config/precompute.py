"""Settings of jobs.precompute."""

from dataclasses import dataclass
from typing import Literal

from igkd.base.choices import BadImages, Crop, Engine, Method, Split


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
    student: str = "mobilenet:cut=5"
    """The student for whose attention transfer the teacher's attention is kept, where the two have layers that correspond."""
    precision: Literal["float16", "float32"] = "float16"
    """How maps are stored."""
    views: str = "none"
    """The teacher's logits of crops, too, for students to learn from as if it were asked in training: all that --padding allows, or a
    number of random ones for each image. May be added to a finished store, by the same command."""
    crop: Crop = "auto"
    """What these crops are: padded, moved by up to --padding pixels; resized, 35 to 100 % of the area, scaled to the image's size, of which
    there can only be a number; auto is resized for images above 64 pixels a side."""
    padding: int = 4
    """Pixels of a padded crop on each side that these views allow."""
    top: int = 32
    """Of a teacher of more than 256 classes, these views hold only this many of the largest logits of a crop, and how probable all other
    classes are together; 0 keeps all logits."""
    rows_per_file: int | None = None
    """Images in one Parquet file: the unit of work, of a retry and of resumption; by default 250, less for large images."""
    image_size: int | None = None
    """Scale and crop every picture to this many pixels a side; needed where sizes are mixed."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""
    repair: bool = False
    """Check every part that is there, name the damaged ones and compute them anew; also for a finished store."""
