"""Opens a trained network that the user names: a checkpoint's directory, or a network of torchvision."""

import hashlib
import re
from typing import Any

import safetensors.torch
import torch

from igkd.base.errors import UserError
from igkd.images.class_names import IMAGENET_CLASSES
from igkd.networks import checkpoint, torchvision
from igkd.networks.network import Classifier, NetworkSpec, multiply_adds, parameter_count


def open_teacher(text: str) -> tuple[Classifier, dict[str, Any]]:
    """Open a teacher; gives it in evaluation mode, and its card: sha256 of the weights, parameters, multiply_adds, how it was made.

    Args:
        text: the directory of a checkpoint; or torchvision:NAME with the default weights, which are downloaded; or
            torchvision:NAME,weights=none,seed=N with random weights. Image size, scaling, mean and deviation are those of the default
            weights' transforms, also if the weights are random.

    Raises:
        UserError: there is no such teacher, or its weights cannot be downloaded.
    """
    if not text.startswith("torchvision:"):
        return checkpoint.load(text), checkpoint.checkpoint_card(text)
    name, _, rest = text.removeprefix("torchvision:").partition(",")
    options = dict(part.partition("=")[::2] for part in rest.split(",") if part)
    seed = options.get("seed", "0")
    if options.keys() - {"weights", "seed"} or options.get("weights", "none") != "none" or not re.fullmatch("[0-9]{1,18}", seed):
        raise UserError(f"'{text}' is no teacher: after torchvision:NAME come at most weights=none and seed=N")
    weights = torchvision.default_weights(name)
    classes = tuple(weights.meta["categories"])
    if "weights" in options:
        classes = tuple(map(str, range(IMAGENET_CLASSES)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            network = torchvision.build(name, IMAGENET_CLASSES)
    else:
        network = torchvision.pretrained(name)
    model = Classifier(torchvision_spec(name, weights.transforms(), classes), network).eval()
    sha = hashlib.sha256(safetensors.torch.save({k: v.contiguous() for k, v in network.state_dict().items()})).hexdigest()
    card = {
        "sha256": sha,
        "parameters": parameter_count(model),
        "multiply_adds": multiply_adds(model),
        "made": {"name": text},
    }
    return model, card


def torchvision_spec(name: str, transform: Any, classes: tuple[str, ...]) -> NetworkSpec:
    """The spec of a network of torchvision.

    Args:
        name: the network's name in torchvision.
        transform: `weights.transforms()`, an ImageClassification.
    """
    (side,), (short_side,) = transform.crop_size, transform.resize_size
    return NetworkSpec(
        name=f"torchvision:{name}",
        classes=classes,
        image_shape=(side, side),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        short_side=short_side,
        interpolation=transform.interpolation.value,
    )
