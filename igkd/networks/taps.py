"""The layers where attention transfer compares a student with its teacher: the deepest ones of equal size, of any two networks."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks.families import build_named, on_meta, tap_of

Size = tuple[int, int]
Layers = Mapping[str, Size]
"""(height, width) of the feature maps that layers give, by the layers' paths, in the order in which they are finished."""
SHOWN = 8


def layers(network: nn.Module, shape: Size) -> dict[str, Size]:
    """The layers of a network that give feature maps (B, C, h, w) of more than one pixel, for pictures of a shape.

    A layer that is run several times counts where it is run last. Outputs with another aspect than the picture's are no feature maps, such
    as those with channels last.
    """
    found: dict[str, Size] = {}

    def note(path: str) -> Any:
        def keep(layer: nn.Module, inputs: Any, output: Any) -> None:
            found.pop(path, None)
            if isinstance(output, Tensor) and output.dim() == 4:
                h, w = int(output.shape[2]), int(output.shape[3])
                if 1 < h <= shape[0] and 1 < w <= shape[1] and abs(h / shape[0] - w / shape[1]) <= 1 / min(shape) + 0.5 / min(h, w):
                    found[path] = (h, w)

        return keep

    hooks = [layer.register_forward_hook(note(path)) for path, layer in network.named_modules() if path]
    was_training = network.training
    try:
        some = next(network.parameters(), torch.zeros(()))
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, *shape, device=some.device, dtype=some.dtype))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


@functools.lru_cache(maxsize=64)
def layers_of(name: str, classes: int, shape: Size) -> Layers:
    """`layers` of the network of a name; nothing but shapes is computed, if possible."""
    return on_meta(name, lambda: layers(build_named(name, classes), shape))


def deepest(found: Layers, size: Size) -> str | None:
    """The last layer of a size, or else of the nearest size; None if there are no layers.

    It is the last of the outermost ones, so that it is a stage's output, and not a layer inside the next stage, before its stride.
    """
    if not found:
        return None
    nearest = min(found.values(), key=lambda one: (abs(one[0] - size[0]) + abs(one[1] - size[1]), one))
    paths = [path for path, one in found.items() if one == nearest]
    outermost = min(path.count(".") for path in paths)
    return [path for path in paths if path.count(".") == outermost][-1]


def common_size(student: Layers, teacher: Layers) -> Size | None:
    """The smallest size that layers of both have; if there is none, the teacher's smallest; None if one of them has no layers."""
    if not student or not teacher:
        return None
    return min(set(student.values()) & set(teacher.values()) or set(teacher.values()), key=lambda size: (size[0] * size[1], size))


def teacher_tap(student: str, teacher: str, network: nn.Module, classes: int, shape: Size) -> str | None:
    """Path of the teacher's layer that corresponds to one of the student's; None if none does.

    Args:
        student, teacher: names of the networks.
        network: the teacher's.
        classes: number of classes of the student.
        shape: (H, W) of the pictures.
    """
    own = tap_of(student, teacher)
    if own is not None:
        return own
    theirs = layers(network, shape)
    size = common_size(layers_of(student, classes, shape), theirs)
    return None if size is None else deepest(theirs, size)


def student_tap(student: str, teacher: str, classes: int, shape: Size, size: Size) -> str | None:
    """Path of the student's layer that corresponds to the teacher's layer whose attention a store holds; None if none does.

    Args:
        shape: (H, W) of the pictures.
        size: (h, w) of the teacher's attention.
    """
    own = tap_of(student, teacher)
    return own if own is not None else deepest(layers_of(student, classes, shape), size)


def check_tap(path: str, found: Layers, name: str) -> str:
    """The path, checked to be one of a network's layers.

    Raises:
        UserError: it is none; the message names some, from the deepest.
    """
    if path not in found:
        some = [f"{one} ({h}x{w})" for one, (h, w) in reversed(list(found.items())) if one.count(".") <= 1][:SHOWN]
        listed = ", ".join(some) or "none"
        raise UserError(f"{name} has no layer {short(path)} with feature maps of more than one pixel; from the deepest, it has {listed}")
    return path
