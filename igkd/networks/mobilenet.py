"""The family `mobilenet`: the paper's MobileNet-V2 for small images, whole or without its last layers.

`mobilenet` is the whole network; `mobilenet:cut=5,width=0.5,stride=2` lacks the last 5 feature layers, has half the channels, and a first
convolution of stride 2. A name omits options that have their defaults: cut=0, width=1, stride=1.
"""

import re
from dataclasses import dataclass

from torch import nn

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks.pooled import Pooled

# (expansion t, channels c, blocks n, stride s): the paper's network, whose second stage keeps the resolution.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FEATURES = 19
CUTS = (0, 3, 5, 7, 9, 11, 13, 15, 17)
"""Numbers of trailing `features` entries that may be removed; 0 is the whole network."""
ATTENTION_DIVIDER = {3: 2, 5: 2, 7: 2, 9: 4, 11: 4, 13: 4, 15: 8, 17: 20}
LARGE = 64
"""If the teacher is of another family, a student for images with a longer side than this, in pixels, gets stride 2."""
_SETTINGS = {"cut": "[0-9]{1,2}", "width": r"[0-9]{1,2}(?:\.[0-9]{1,4})?", "stride": "[1-9][0-9]{0,3}"}


@dataclass(frozen=True, kw_only=True)
class MobileNet:
    """One network of the family."""

    cut: int = 0
    width: float = 1.0
    """Width multiplier of every layer (Sandler et al. 2018)."""
    stride: int = 1
    """Stride of the first convolution: 1 for images of about 32 pixels a side; 2, with a quarter of the work, for larger ones."""


def parse(options: str) -> MobileNet:
    """The network for a name's options, such as "cut=5,stride=2".

    Raises:
        UserError: the options are malformed or out of range.
    """
    given = dict(part.partition("=")[::2] for part in options.split(",")) if options else {}
    sound = all(name in _SETTINGS and re.fullmatch(_SETTINGS[name], value) for name, value in given.items())
    if not sound or len(given) != (options.count(",") + 1 if options else 0):
        raise UserError(f"{short(f'mobilenet:{options}')} names no network; one is mobilenet:cut=5 or mobilenet:width=0.5,stride=2")
    found = MobileNet(cut=int(given.get("cut", 0)), width=float(given.get("width", 1)), stride=int(given.get("stride", 1)))
    if found.cut not in CUTS:
        raise UserError(f"mobilenet:{options}: cut {found.cut} is not one of {', '.join(map(str, CUTS))}")
    if found.width == 0:
        raise UserError(f"mobilenet:{options}: the width must be above 0")
    return found


def canonical(options: str) -> str:
    """The options in their canonical spelling: in a fixed order, without those that have their defaults."""
    found, usual = parse(options), MobileNet()
    differing = [name for name in _SETTINGS if getattr(found, name) != getattr(usual, name)]
    return ",".join(f"{name}={getattr(found, name):g}" for name in differing)


def build(options: str, classes: int) -> nn.Module:
    """The network, freshly initialised by torch's generator; it maps float (B, 3, H, W), normalised, to logits (B, classes)."""
    from torchvision.models import MobileNetV2  # here, since it takes more than a second

    found = parse(options)
    whole = MobileNetV2(
        num_classes=classes,
        width_mult=found.width,
        inverted_residual_setting=[list(stage) for stage in STAGES],
        dropout=0.0,
    )
    whole.features[0][0].stride = (found.stride, found.stride)
    for layer in whole.modules():
        if isinstance(layer, nn.ReLU6):
            layer.inplace = False  # so that it becomes a `ClampedReLU6`, which is faster
    kept: nn.Sequential = whole.features[: FEATURES - found.cut]
    return Pooled(kept, classes)


def tap(options: str, teacher: str) -> str | None:
    """Path of the layer where attention transfer compares this student with its teacher (paper: layer 19 // divider of the cut); None if
    the teacher is cut so far that it has no such layer."""
    cut = parse(options).cut
    if cut not in ATTENTION_DIVIDER:
        return None
    layer = FEATURES // ATTENTION_DIVIDER[cut]
    return f"features.{layer}" if layer < FEATURES - parse(teacher).cut else None


def student(options: str, teacher: str | None, side: int) -> str:
    """A student's options; width and stride, if left open, are the teacher's.

    Args:
        teacher: options of the teacher, if it is of this family.
        side: longer side of the images in pixels; decides the stride if the teacher is of another family.
    """
    like = MobileNet(stride=2 if side > LARGE else 1) if teacher is None else parse(teacher)
    defaults = [f"width={like.width:g}"] * ("width=" not in options) + [f"stride={like.stride}"] * ("stride=" not in options)
    return canonical(",".join([*filter(None, [options]), *defaults]))
