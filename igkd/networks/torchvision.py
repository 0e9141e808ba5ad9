"""The family `torchvision`: any classifier of torchvision, such as `torchvision:resnet18`."""

import importlib
import os
import pickle
import warnings
from types import ModuleType
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from igkd.base.errors import UserError
from igkd.networks.preparation import Preparation

# torchvision unpickles files in $TORCH_HOME without checking their hash. This setting makes torch load nothing but tensors.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def models() -> ModuleType:
    """torchvision.models, imported when it is first used: that takes more than a second, which every command would have to wait."""
    return importlib.import_module("torchvision.models")


def canonical(options: str) -> str:
    """The network's name in torchvision, checked.

    Raises:
        UserError: torchvision has no classifier of that name.
    """
    known = models().list_models(module=models())
    if options not in known:
        raise UserError(f"torchvision has no classifier '{options}'; it has {', '.join(known)}")
    return options


def build(options: str, classes: int) -> nn.Module:
    """The network, freshly initialised by torch's generator; it maps float (B, 3, H, W), normalised, to logits (B, classes)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # inception_v3 and googlenet warn that their initialisation will change
        network: nn.Module = models().get_model(canonical(options), weights=None, num_classes=classes)
    return network


def tap(options: str, teacher: str) -> str | None:
    """Always None: `networks.taps` finds layers of equal size."""
    return None


def student(options: str, teacher: str | None, side: int) -> str:
    """The options, which leave nothing open for a teacher to fill in."""
    return canonical(options)


def default_weights(options: str) -> Any:
    """torchvision's entry of its default weights for ImageNet, with `meta["categories"]` and `transforms()`."""
    return models().get_model_weights(canonical(options)).DEFAULT


def preparation(options: str) -> Preparation:
    """The size, scaling, mean and deviation of the default weights' own transforms."""
    transform = default_weights(options).transforms()
    (side,), (short_side,) = transform.crop_size, transform.resize_size
    return Preparation(
        image_shape=(side, side),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        short_side=short_side,
        interpolation=transform.interpolation.value,
    )


def imagenet_categories() -> tuple[str, ...]:
    """torchvision's names of ImageNet's 1,000 classes, in the usual order of their WordNet ids."""
    return tuple(default_weights("resnet18").meta["categories"])


def outputs(options: str) -> int | None:
    """Number of classes of the default weights."""
    return len(default_weights(options).meta["categories"])


def categories(options: str, count: int) -> tuple[str, ...] | None:
    """The names of ImageNet's classes, if the network has so many; else None."""
    names = tuple(default_weights(options).meta["categories"])
    return names if count == len(names) else None


def pretrained(options: str) -> nn.Module:
    """The network with its default weights, which are downloaded unless $TORCH_HOME has them.

    Raises:
        UserError: the weights cannot be downloaded or read.
    """
    try:
        network: nn.Module = models().get_model(options, weights=default_weights(options))
    except (URLError, OSError) as error:
        raise UserError(
            f"the weights of torchvision:{options} cannot be downloaded ({error}); on a machine with a network, torchvision keeps them in "
            "$TORCH_HOME (by default ~/.cache/torch), from where they can be copied here"
        ) from None
    except (pickle.UnpicklingError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"what $TORCH_HOME (by default {torch.hub.get_dir()}) holds for torchvision:{options} is not torchvision's: "
            f"{type(error).__name__}; delete it, and it is downloaded anew"
        ) from None
    return network
