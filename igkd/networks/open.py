"""Opens a trained network that the user names: a checkpoint's directory, or a network of a family with weights."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import nn

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.images.class_names import IMAGENET_CLASSES
from igkd.networks import checkpoint
from igkd.networks.families import FAMILIES, build_named, canonical_name, outside
from igkd.networks.network import Classifier, NetworkSpec, multiply_adds, parameter_count
from igkd.networks.preparation import Preparation
from igkd.networks.trial import outputs_of
from igkd.networks.weights import apart, classes_in, fitted, head, load_into, read_weights, shapes, without_prefixes

DEFAULT, NONE = "default", "none"
"""Values of weights= that are no files."""
_REQUEST = re.compile(r"(?P<network>.+?)(?:,weights=(?P<weights>.+?))?(?:,seed=(?P<seed>[0-9]{1,18}))?", re.ASCII | re.DOTALL)
Loaded = tuple[nn.Module, int | None]
"""A network, and its number of classes; None if only a trial shows it."""


@dataclass(frozen=True)
class Request:
    """A network with weights, as the user names it."""

    network: str
    """The network's name."""
    weights: str = DEFAULT
    """A file, `default` for the family's own weights, or `none` for random ones."""
    seed: int = 0
    """Of random weights."""

    @classmethod
    def parse(cls, text: str) -> "Request":
        """The request for NETWORK, NETWORK,weights=FILE, NETWORK,weights=default or NETWORK,weights=none,seed=N.

        Raises:
            UserError: it is none of these.
        """
        found = _REQUEST.fullmatch(text)
        weights = None if found is None else found["weights"]
        wrong = found is None or ",seed=" in (weights or found["network"]) or (found["seed"] is not None and weights != NONE)
        if found is None or wrong or ",weights=" in found["network"] or (outside(found["network"])[0] and "," in found["network"]):
            raise UserError(
                f"{short(text)} is no teacher: after the network come at most weights=FILE, weights=default, or weights=none and seed=N"
            )
        return cls(canonical_name(found["network"]), weights or DEFAULT, int(found["seed"] or 0))


def names_network(text: str) -> bool:
    """Whether a teacher's name is that of a network, and not a checkpoint's directory."""
    return re.match(rf"(?:{'|'.join(FAMILIES)})(?::|,weights=)", text) is not None


def open_teacher(text: str) -> tuple[Classifier, dict[str, Any]]:
    """Open a teacher; gives it in evaluation mode, and its card: sha256 of the weights, parameters, multiply_adds, how it was made.

    Args:
        text: the directory of a checkpoint; or what `Request.parse` takes. Image size, scaling, mean and deviation are then the network's
            own, also if the weights are random or from a file.

    Raises:
        UserError: there is no such teacher, its weights cannot be read or downloaded or do not fit, or it is of no use.
    """
    if not names_network(text):
        return checkpoint.load(text), checkpoint.checkpoint_card(text)
    request = Request.parse(text)
    found, options = outside(request.network)
    model = classifier(request, None, Preparation() if found is None else found.preparation(options))
    card = {
        "sha256": sha256(model),
        "parameters": parameter_count(model),
        "multiply_adds": multiply_adds(model),
        "made": {"name": text},
    }
    return model, card


def sha256(model: Classifier) -> str:
    """sha256 of a network's weights, as a checkpoint of it has."""
    return hashlib.sha256(safetensors.torch.save(apart(model.network.state_dict()))).hexdigest()


def classifier(request: Request, classes: tuple[str, ...] | None, preparation: Preparation) -> Classifier:
    """The network of a request, tried, in evaluation mode.

    Args:
        classes: the names of its classes in the order of its logits; None for those that it knows itself, or else numbers.
        preparation: how its pictures are prepared.

    Raises:
        UserError: its weights cannot be had or do not fit, it has another number of classes, its preparation is not known, or it is of no
            use.
    """
    name = request.network
    prepared = preparation.complete(name)
    network, known = _load(request, None if classes is None else len(classes))
    count = outputs_of(network, name, prepared["image_shape"])
    if known is not None and known != count:
        raise UserError(f"{name} gives logits of {count} classes where its weights are for {known}: it is no classifier of these")
    if classes is None:
        found, options = outside(name)
        if request.weights != NONE and found is not None:
            classes = found.categories(options, count)
        classes = tuple(map(str, range(count))) if classes is None else classes
    elif len(classes) != count:
        raise UserError(
            f"{name} gives logits of {count} classes, and {len(classes)} names are given: give as many, in the order of its logits"
        )
    return Classifier(NetworkSpec(name=name, classes=classes, **prepared), network).eval()


def file_classes(request: Request) -> int | None:
    """Number of classes of the head in a request's file of weights; None if it has no head of this network, or the network's number of
    classes cannot be chosen.

    Raises:
        UserError: the file cannot be read.
    """
    state = without_prefixes(read_weights(request.weights), shapes(request.network, 2))
    return classes_in(state, head(request.network))


def _load(request: Request, classes: int | None) -> Loaded:
    """The network with its weights.

    Args:
        classes: number of classes asked for, or None.
    """
    found, options = outside(request.network)
    if request.weights == DEFAULT:
        if found is None:
            raise UserError(f"{request.network} has no default weights: give {request.network},weights=FILE, or a checkpoint's directory")
        return found.pretrained(options), None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        if request.weights == NONE:
            count = classes or (None if found is None else found.outputs(options)) or IMAGENET_CLASSES
            return build_named(request.network, count), None
        state, last, found_classes = read_weights(request.weights), head(request.network), file_classes(request)
        fit = fitted(state, request.network, classes or found_classes or 2, request.weights)
        network = build_named(request.network, classes or found_classes or 2)
    load_into(network, fit.state, request.weights)
    return network, found_classes if last else None
