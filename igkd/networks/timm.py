"""The family `timm`: any classifier of timm (`pip install 'igkd[timm]'`), such as `timm:mobilenetv3_small_050`.

timm is imported only when one of its networks is named: the import takes seconds.
"""

import math
import pickle
from typing import Any

from torch import nn

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks.preparation import Preparation
from igkd.networks.torchvision import imagenet_categories


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"networks of timm need timm ({error}): pip install 'igkd[timm]'") from None
    return timm


def canonical(options: str) -> str:
    """The network's name in timm, such as resnet18 or resnet18.a1_in1k, checked.

    Raises:
        UserError: timm is not installed, or has no network of that name.
    """
    timm = _timm()
    if not timm.is_model(options):
        near = timm.list_models(f"*{options.partition('.')[0][:12]}*")[:5] if options.isidentifier() else []
        hint = f"; similar ones are {', '.join(near)}" if near else "; timm.list_models() lists those it has"
        raise UserError(f"timm has no network {short(options)}{hint}")
    return options


def build(options: str, classes: int) -> nn.Module:
    """The network, freshly initialised by torch's generator; it maps float (B, 3, H, W), normalised, to logits (B, classes)."""
    network: nn.Module = _timm().create_model(canonical(options), pretrained=False, num_classes=classes)
    return network


def tap(options: str, teacher: str) -> str | None:
    """Always None: `networks.taps` finds layers of equal size."""
    return None


def student(options: str, teacher: str | None, side: int) -> str:
    """The options, which leave nothing open for a teacher to fill in."""
    return canonical(options)


def _configuration(options: str) -> Any:
    canonical(options)
    return _timm().models.get_pretrained_cfg(options)


def preparation(options: str) -> Preparation:
    """The size, scaling, mean and deviation that timm's own evaluation of this network has."""
    configuration = _configuration(options).to_dict()
    how = _timm().data.resolve_data_config({}, pretrained_cfg=configuration)
    side = int(how["input_size"][1])
    return Preparation(
        image_shape=(side, side),
        mean=tuple(how["mean"]),
        std=tuple(how["std"]),
        short_side=math.floor(side / how["crop_pct"]),
        interpolation=how["interpolation"] if how["interpolation"] in ("nearest", "bilinear") else "bicubic",
    )


def outputs(options: str) -> int | None:
    """Number of classes of the default weights."""
    return int(_configuration(options).num_classes)


def categories(options: str, count: int) -> tuple[str, ...] | None:
    """The names of ImageNet's 1,000 classes, if the network has so many; else None."""
    return imagenet_categories() if count == len(imagenet_categories()) else None


def pretrained(options: str) -> nn.Module:
    """The network with its default weights, which are downloaded unless $HF_HOME has them.

    Raises:
        UserError: timm has none, or they cannot be downloaded or read.
    """
    try:
        network: nn.Module = _timm().create_model(canonical(options), pretrained=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the default weights of timm:{options} cannot be had ({type(error).__name__}: {reason[:160]}); on a machine with a network, "
            "timm keeps them in $HF_HOME (by default ~/.cache/huggingface), from where they can be copied here; or give weights=FILE"
        ) from None
    return network
