"""Files of weights that others have saved: read as tensors alone, and fitted to a network by name and shape."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks.families import build_named, on_meta
from igkd.networks.scaled import INNER

NESTED = ("model_ema", "state_dict_ema", "ema", "state_dict", "model", "module", "network")
"""Entries of a file under which the tensors may lie, an average of the weights first."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""Beginnings of names that wrappers add: data parallelism, torch.compile, an outer module."""
COUNTERS = ("n_averaged", "num_batches_tracked")
"""Ends of names that may be missing or left over."""
DEPTH = 3
"""How deep tensors may be nested, and how many wrappers there may be."""
SHOWN = 3


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file by name: safetensors, or .pth, .pt, .bin as torch.save writes them. Nothing but tensors is unpickled.

    Raises:
        UserError: there is no such file, or it holds no tensors, or anything else that would have to be executed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file of weights {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = _tensors(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors, and igkd runs no code of a file: load it where it was made, and save its state_dict() by "
            "torch.save or safetensors"
        ) from None
    except Exception as error:  # torch's reader raises anything for bytes that are none of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be read as weights ({reason[:160]}): give .safetensors, or what torch.save wrote of a state_dict()"
        ) from None
    if not found:
        raise UserError(f"{path} holds no tensors by name; save the network's state_dict() by torch.save or safetensors")
    return found


def _tensors(value: Any, depth: int = DEPTH) -> dict[str, Tensor]:
    """The named tensors in what a file holds: under one of NESTED, or else directly; empty if there are none."""
    if not isinstance(value, Mapping):
        return {}
    if depth:
        for name in NESTED:
            if found := _tensors(value.get(name), depth - 1):
                return found
    return {key: one for key, one in value.items() if isinstance(key, str) and isinstance(one, Tensor)}


def apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors as safetensors takes them: on the CPU, contiguous, and none in the memory of another, as those of layers that are
    used twice are."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in taken else tensor
        taken.add(place)
    return found


def shapes(name: str, classes: int) -> dict[str, torch.Size]:
    """The shapes of a network's tensors by name."""
    return on_meta(name, lambda: {key: value.shape for key, value in build_named(name, classes).state_dict().items()})


def head(name: str) -> dict[str, int]:
    """The tensors of a network's last layer, whose size is the number of classes: the axis of that size by the tensor's name.

    It is empty if the network's number of classes cannot be chosen.
    """
    few, more = shapes(name, 5), shapes(name, 7)
    found = {}
    for key in few.keys() & more.keys():
        if len(few[key]) == len(more[key]):
            differing = [axis for axis, sizes in enumerate(zip(few[key], more[key], strict=True)) if sizes == (5, 7)]
            if differing:
                found[key] = differing[0]
    return found


def without_prefixes(state: dict[str, Tensor], wanted: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors with those prefixes removed from their names that makes most names fit; or with the prefix of a `scaled` network's own
    tensors added, if the file is of the network that it scales for."""
    best, layer = state, [state]
    if wanted and all(key.startswith(INNER) for key in wanted) and not any(key.startswith(INNER) for key in state):
        bare = {key.removeprefix(INNER): shape for key, shape in wanted.items()}
        return {INNER + key: value for key, value in without_prefixes(state, bare).items()}
    for _ in range(DEPTH):
        layer = [
            {key.removeprefix(prefix): value for key, value in one.items()}
            for one in layer
            for prefix in PREFIXES
            if any(key.startswith(prefix) for key in one)
        ]
        best = max([best, *layer], key=lambda one: len(one.keys() & wanted.keys()))
    return best


@dataclass(frozen=True)
class Fitted:
    """Tensors for a network."""

    state: dict[str, Tensor]
    """By the network's names; without its head, if that has another size."""
    new_head: int | None
    """If the head has another size: the number of classes in the file."""


def classes_in(state: Mapping[str, Tensor], last: Mapping[str, int]) -> int | None:
    """The number of classes of the head in a file's tensors; None if they have no head of this network.

    Args:
        last: as `head` gives it.
    """
    return next((state[key].shape[axis] for key, axis in last.items() if key in state and axis < state[key].dim()), None)


def fitted(state: dict[str, Tensor], name: str, classes: int, source: str, any_head: bool = False) -> Fitted:
    """Fit tensors to the network of a name.

    Args:
        state: the tensors of a file.
        source: the file, for messages.
        any_head: leave out a head of another size instead of refusing it.

    Raises:
        UserError: tensors are missing, left over, or have other shapes; the message says which.
    """
    wanted, last = shapes(name, classes), head(name)
    state = {key: value for key, value in without_prefixes(state, wanted).items() if key in wanted or not key.endswith(COUNTERS)}
    found = classes_in(state, last)
    if found is not None and found != classes:
        if not any_head:
            raise UserError(
                f"{source} has a head for {found} classes, and {classes} are asked for: give the {found} names, or other weights"
            )
        state = {key: value for key, value in state.items() if key not in last}
        wanted = {key: shape for key, shape in wanted.items() if key not in last}
    else:
        found = None
    missing = [key for key in wanted if key not in state and not key.endswith(COUNTERS)]
    over = [key for key in state if key not in wanted]
    other = [key for key in wanted if key in state and state[key].shape != wanted[key]]
    if missing or over or other:
        parts = [f"{len(missing)} tensor(s) are missing{_some(missing)}"] * bool(missing)
        parts += [f"{len(over)} are left over{_some(over)}"] * bool(over)
        if other:
            key = other[0]
            parts += [f"{len(other)} have another shape ({short(key)}: {_size(state[key].shape)} for {_size(wanted[key])})"]
        raise UserError(f"{source} does not fit {name}: {', '.join(parts)}; give the weights of this network, or name the one they are of")
    return Fitted(state, found)


def _some(keys: list[str]) -> str:
    return f" ({', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''})"


def _size(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a number"


def load_into(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy fitted tensors into a network, in place; those that it has besides keep their values.

    Raises:
        UserError: a tensor is no number that the network could have. Constants, such as the masks of attention, may be infinite.
    """
    learned = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    numbers = {key: value for key, value in state.items() if value.is_floating_point()}
    broken = next((key for key, value in numbers.items() if (~value.isfinite() if key in learned else value.isnan()).any()), None)
    if broken is not None:
        raise UserError(f"{source}: {short(broken)} has values that are no finite numbers: these weights are of no use")
    network.load_state_dict(dict(state), strict=False)
