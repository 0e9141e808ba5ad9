"""What training starts from instead of random weights: those of a file, of a checkpoint, or a family's default ones."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from igkd.base.errors import UserError
from igkd.images.codec import FILL, Scaling
from igkd.networks import checkpoint
from igkd.networks.families import canonical_name, outside
from igkd.networks.network import NetworkSpec
from igkd.networks.open import DEFAULT
from igkd.networks.preparation import Preparation
from igkd.networks.weights import fitted, read_weights


@dataclass(frozen=True, kw_only=True)
class Initial:
    """Weights to start from."""

    state: Mapping[str, Tensor]
    """By the names of the network's tensors; the head is missing if it had another size."""
    preparation: Preparation
    """How the pictures were prepared that these weights were trained on, as far as that is known."""
    line: str
    """Says what training starts from."""


def initial(name: str, classes: int, init: str) -> Initial:
    """The weights that --init names, for the network of a name.

    Args:
        init: a file of weights, the directory of a checkpoint, or `default` for the family's own weights.

    Raises:
        UserError: they cannot be had, or do not fit.
    """
    found, options = outside(name)
    if init == DEFAULT:
        if found is None:
            raise UserError(f"{name} has no default weights: --init takes a file or a checkpoint's directory")
        state, source = found.pretrained(options).state_dict(), f"the default weights of {name}"
    elif Path(init).is_dir():
        state, source = checkpoint.load(init).network.state_dict(), init
    else:
        state, source = read_weights(init), init
    fit = fitted(state, name, classes, source, any_head=True)
    head = "" if fit.new_head is None else f", with a new last layer for {classes} classes instead of {fit.new_head}"
    return Initial(state=fit.state, preparation=prepared(name, init), line=f"{name} starts from {source}{head}")


def prepared(name: str, init: str) -> Preparation:
    """How the pictures were prepared that the weights of --init were trained on: as a checkpoint says, else as the network does.

    Raises:
        UserError: the checkpoint is damaged.
    """
    if init != DEFAULT and Path(init).is_dir():
        spec = checkpoint.spec_of(init)
        return Preparation(
            image_shape=spec.image_shape, mean=spec.mean, std=spec.std, short_side=spec.short_side, interpolation=spec.interpolation
        )
    found, options = outside(name)
    return Preparation() if found is None else found.preparation(options)


def sizing(name: str, init: str | None, image_size: int | None) -> tuple[tuple[int, int] | None, Scaling]:
    """(H, W) that every picture is scaled to for training, None for its own size; and how it is scaled.

    With `init` they are those of the pictures that these weights were trained on, if that is known, unless `image_size` gives another size.
    """
    if init is None:
        return None if image_size is None else (image_size, image_size), FILL
    how = prepared(canonical_name(name), init).overridden(image_size)
    return how.image_shape, Scaling(how.short_side, how.interpolation)


def normalised(spec: NetworkSpec, start: Initial) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pictures that weights were trained on; those of the spec if they are not known."""
    how = start.preparation
    return (spec.mean, spec.std) if how.mean is None or how.std is None else (how.mean, how.std)


def init_hash(init: str) -> str:
    """What identifies the weights that --init names: sha256 of a file, or of a checkpoint's weights; or `default`.

    Raises:
        UserError: there is no such file or checkpoint.
    """
    if init == DEFAULT:
        return DEFAULT
    if Path(init).is_dir():
        return str(checkpoint.checkpoint_card(init)["sha256"])
    if not Path(init).is_file():
        raise UserError(f"--init {init}: there is no such file of weights or checkpoint; or give default")
    with open(init, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
