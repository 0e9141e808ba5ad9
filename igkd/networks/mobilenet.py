"""The paper's MobileNet-V2 for small images, whole or without its last layers."""

from torch import nn
from torchvision.models import MobileNetV2

from igkd.base.errors import UserError
from igkd.networks.convolutions import avoid_slow_kernels

# (expansion t, channels c, blocks n, stride s): the paper's network, whose second stage keeps the resolution.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FEATURES = 19
CUTS = (0, 3, 5, 7, 9, 11, 13, 15, 17)
ATTENTION_DIVIDER = {3: 2, 5: 2, 7: 2, 9: 4, 11: 4, 13: 4, 15: 8, 17: 20}


def build_features(classes: int, cut: int, width: float, stride: int) -> nn.Sequential:
    """The layers of a MobileNet-V2 before its classifier, less those that are cut off."""
    whole = MobileNetV2(
        num_classes=classes,
        width_mult=width,
        inverted_residual_setting=[list(stage) for stage in STAGES],
        dropout=0.0,
    )
    whole.features[0][0].stride = (stride, stride)
    kept: nn.Sequential = whole.features[: FEATURES - cut]
    avoid_slow_kernels(kept)
    return kept


def attention_layer(cut: int) -> int:
    """Index into `features` where teacher and the student of this cut are tapped for attention transfer (PAPER: 19 // divider)."""
    if cut not in ATTENTION_DIVIDER:
        raise UserError(f"attention transfer needs a cut student; cut must be one of {', '.join(map(str, ATTENTION_DIVIDER))}, not {cut}")
    return FEATURES // ATTENTION_DIVIDER[cut]
