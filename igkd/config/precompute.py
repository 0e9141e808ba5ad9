"""Settings of jobs.precompute."""

from dataclasses import dataclass
from typing import Literal

from igkd.base.choices import BadImages, Crop, Engine, Method, Precision, Split
from igkd.base.settings import check_side


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Compute the attribution store: maps, logits and attention of a teacher for every image."""

    images: str
    """cifar10, shapes, parquet:URI[,label=COLUMN][,image=COLUMN], folder:PATH or hf:OWNER/NAME."""
    teacher: str
    """Directory of the teacher's checkpoint, or a network of torchvision or timm, such as torchvision:resnet50 or timm:resnet18, or of your
    own, module:PACKAGE.MODULE:FUNCTION, with its default weights or those of NETWORK,weights=FILE."""
    store: str
    """Directory or s3:// URI of the store; the same command continues what is there."""
    split: Split = "train"
    """Which of the source's images."""
    limit: int | None = None
    """Only this many images: a random choice, stratified by class, fixed by their ids."""
    steps: int = 50
    """Integration steps of integrated gradients."""
    method: Method = "ig"
    """Integrated gradients, their mean over noisy images, or input times gradient."""
    engine: Literal["fast"] | Engine = "fast"
    """captum is the reference; fast chooses the fastest engine that gives the same maps: torch on a GPU, or if OpenVINO is not installed or
    fails with this teacher; else openvino, with the backward pass in bfloat16 if the driver's processor has instructions for it."""
    student: str = "mobilenet:cut=5"
    """The student that the store's attention is for: it decides the teacher's layer whose attention is kept, if the two have layers that
    correspond."""
    taps: tuple[str, str] | None = None
    """Paths of the layers that attention transfer compares, the student's and the teacher's, such as layer3 features.13; by default the
    deepest ones of equal size."""
    gradcam: bool = False
    """Also store the teacher's Grad-CAM of its last layer with feature maps, a coarse map that costs one more pass; see jobs.distill
    --explanation."""
    precision: Literal["float16", "float32"] = "float16"
    """How maps are stored."""
    views: str = "none"
    """Also store the teacher's logits of crops of each image, from which students learn as if the teacher were asked during training: none,
    all that --padding allows, or a number of random ones. They can be added to a finished store by the same command."""
    views_precision: Precision = "auto"
    """Of these forward passes on processors: auto is bfloat16 where the logits of 500 images hardly change, else float32; bfloat16 takes it
    however much they change."""
    crop: Crop = "auto"
    """What these crops are: padded, moved by up to --padding pixels; resized, 35 to 100 % of the area, scaled to the image's size, of which
    there can only be a number; auto is resized for images above 64 pixels a side."""
    padding: int = 4
    """Padding of a padded crop, in pixels on each side."""
    top: int = 32
    """Of a teacher of more than 256 classes, these views hold only this many of the largest logits of a crop, and how probable all other
    classes are together; 0 keeps all logits."""
    rows_per_file: int | None = None
    """Images in one Parquet file, which is computed, retried and resumed as a whole; by default 250, fewer for large images."""
    image_size: int | None = None
    """Scale and crop every picture to this many pixels a side; needed where sizes are mixed."""
    class_map: str | None = None
    """JSON or CSV file that says which of the teacher's classes (its name, or its number from 0) each class of the images is; without it,
    a teacher of more classes is matched by name."""
    bad_images: BadImages = "refuse"
    """What to do with an image that cannot be used."""
    repair: bool = False
    """Check every part that is there, name the damaged ones and compute them anew; also for a finished store."""

    def __post_init__(self) -> None:
        check_side(self.image_size)
