"""Teachers by name: a checkpoint of this project, or one of torchvision's classifiers for ImageNet."""

import hashlib
import os
import pickle
import re
import warnings
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.images.class_names import IMAGENET_CLASSES
from igkd.networks import checkpoint
from igkd.networks.network import ImageClassifier, ModelSpec, multiply_adds, parameter_count

# torchvision unpickles what it finds in $TORCH_HOME without looking at its hash. This makes torch load tensors and nothing else.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


class TorchvisionClassifier(ImageClassifier):
    """A classifier of torchvision. Its spec's width and stride are those of the students distilled from it."""

    def __init__(self, spec: ModelSpec, network: nn.Module) -> None:
        super().__init__(spec)
        self.network = network

    def from_normalised(self, x: Tensor) -> Tensor:
        """Normalised float (B, 3, H, W) to logits (B, classes)."""
        logits: Tensor = self.network(x)
        return logits


def open_teacher(text: str) -> tuple[ImageClassifier, dict[str, Any]]:
    """A teacher in evaluation mode and its card: sha256 of the weights, parameters, multiply_adds, how it was made.

    Args:
        text: the directory of a checkpoint; or torchvision:NAME with the default weights, which are downloaded;
            torchvision:NAME,weights=none,seed=N has random ones. Size, scaling, mean and deviation of torchvision's images are those
            of its default weights' own transforms, also where the weights are random.

    Raises:
        UserError: there is no such teacher, or its weights cannot be had.
    """
    if not text.startswith("torchvision:"):
        return checkpoint.load(text), checkpoint.checkpoint_card(text)
    name, _, rest = text.removeprefix("torchvision:").partition(",")
    options = dict(part.partition("=")[::2] for part in rest.split(",") if part)
    seed = options.get("seed", "0")
    if options.keys() - {"weights", "seed"} or options.get("weights", "none") != "none" or not re.fullmatch("[0-9]{1,18}", seed):
        raise UserError(f"'{text}' is no teacher: after torchvision:NAME come at most weights=none and seed=N")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"torchvision has no classifier '{name}'; it has {', '.join(known)}")
    classes = tuple(map(str, range(IMAGENET_CLASSES)))
    weights = torchvision.models.get_model_weights(name).DEFAULT
    if "weights" in options:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # inception_v3 and googlenet announce other random weights
            torch.manual_seed(int(seed))
            network = torchvision.models.get_model(name, weights=None)
    else:
        try:
            network = torchvision.models.get_model(name, weights=weights)
        except (URLError, OSError) as error:
            raise UserError(
                f"the weights of {text} cannot be downloaded ({error}); on a machine with a network, torchvision keeps them in "
                "$TORCH_HOME (by default ~/.cache/torch), from where they can be copied here"
            ) from None
        except (pickle.UnpicklingError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(
                f"what $TORCH_HOME (by default {torch.hub.get_dir()}) holds for {text} is not torchvision's: "
                f"{type(error).__name__}; delete it, and it is downloaded anew"
            ) from None
        classes = tuple(weights.meta["categories"])
    model = TorchvisionClassifier(torchvision_spec(weights.transforms(), classes), network).eval()
    sha = hashlib.sha256(safetensors.torch.save({k: v.contiguous() for k, v in network.state_dict().items()})).hexdigest()
    card = {
        "sha256": sha,
        "parameters": parameter_count(model),
        "multiply_adds": multiply_adds(model),
        "made": {"name": text},
    }
    return model, card


def torchvision_spec(transform: Any, classes: tuple[str, ...]) -> ModelSpec:
    """How a network of torchvision is fed.

    Args:
        transform: `weights.transforms()`, an ImageClassification.
    """
    (side,), (short_side,) = transform.crop_size, transform.resize_size
    return ModelSpec(
        classes=classes,
        image_shape=(side, side),
        stride=2,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        short_side=short_side,
        interpolation=transform.interpolation.value,
    )
