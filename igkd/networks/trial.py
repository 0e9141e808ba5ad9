"""Tries a network on two random pictures before hours are spent on it."""

import copy
import functools

import torch
from torch import Tensor, nn

from igkd.base.errors import UserError, first_line
from igkd.networks.families import architecture, build_named, outside
from igkd.networks.layers import twice_differentiable
from igkd.networks.network import NetworkSpec
from igkd.networks.weights import apart

SAME = 1e-3
"""Two passes may differ by this share of the largest logit: some kernels round differently each time."""


def outputs_of(network: nn.Module, name: str, shape: tuple[int, int]) -> int:
    """The number of classes of a network, from a trial; the network is then in evaluation mode.

    Args:
        network: should map float (B, 3, H, W) to logits (B, classes).
        name: of the network, for messages.
        shape: (H, W) in pixels.

    Raises:
        UserError: the network cannot take such pictures, gives no logits, or answers differently when asked twice, or for a picture alone.
    """
    pixels = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    network.eval()
    try:
        with torch.no_grad():
            first, second = network(pixels.clone()), network(pixels.clone())  # it may change what it is given
    except Exception as error:  # the network may be anyone's, and raise anything
        raise UserError(_why(network, name, shape, error)) from None
    check_logits(first, name)
    if not _same(first, second, first):
        raise UserError(
            f"{name} gives two answers for the same pictures in evaluation mode: something in it is random (such as a dropout that "
            "model.eval() does not switch off), so it has no one map or logit to learn from"
        )
    _check_alone(network, name, pixels, first)
    _check_channels_last(network, name, pixels)
    if first.shape[1] > 1 and bool((first >= 0).all()) and bool(((first.sum(dim=1) - 1).abs() < SAME).all()):
        raise UserError(f"{name} gives probabilities where logits are needed: leave out the softmax at its end")
    return int(first.shape[1])


def _same(one: Tensor, other: object, logits: Tensor) -> bool:
    """Whether two answers are the same but for rounding, which is measured by all logits of the trial."""
    largest = float(logits.abs().max().nan_to_num(1))
    if not isinstance(other, Tensor) or other.shape != one.shape:
        return False
    return torch.allclose(one, other, rtol=0, atol=SAME * largest, equal_nan=True)


def _check_alone(network: nn.Module, name: str, pixels: Tensor, logits: Tensor) -> None:
    """Raise UserError if a network answers a picture by itself otherwise than beside another one."""
    try:
        with torch.no_grad():
            same, why = _same(logits[:1], network(pixels[:1].clone()), logits), ""
    except Exception as error:  # the network may be anyone's, and raise anything
        same, why = False, f" ({first_line(error)})"
    if not same:
        raise UserError(
            f"{name} answers a picture alone otherwise than beside others{why}, so what is learned of it depends on the batch: such as "
            "by a batch normalisation without running statistics, or one that stays in training mode"
        )


def _check_channels_last(network: nn.Module, name: str, pixels: Tensor) -> None:
    """Raise UserError if a network cannot take pictures as all commands give them, the channels of a pixel beside each other in memory."""
    try:
        with torch.no_grad():
            copy.deepcopy(network).to(memory_format=torch.channels_last)(pixels.contiguous(memory_format=torch.channels_last))
    except Exception as error:  # the network may be anyone's, and raise anything
        raise UserError(
            f"{name} cannot take pictures in channels-last memory, as they are here ({first_line(error)}): "
            "take .flatten(1) or .reshape in place of .view"
        ) from None


def check_copied(network: nn.Module, name: str) -> None:
    """Raise UserError if a network cannot be copied, as averaged weights and maps need it, or cannot take its own weights back."""
    try:
        copied = copy.deepcopy(network)
    except Exception as error:  # the network may be anyone's, and raise anything
        raise UserError(
            f"{name} cannot be copied ({first_line(error)}): in place of torch.nn.utils.weight_norm, "
            "take torch.nn.utils.parametrizations.weight_norm"
        ) from None
    try:
        copied.load_state_dict(apart(network.state_dict()))
    except Exception as error:  # the network may be anyone's, and raise anything
        reason = first_line(Exception(str(error).partition(":\n")[2] or error))
        raise UserError(
            f"the weights of {name} cannot be loaded again ({reason}): a buffer that expand() made needs .clone(), and what "
            "get_extra_state gives, set_extra_state must take"
        ) from None


def check_logits(value: object, name: str) -> None:
    """Raise UserError if what a network gave for two pictures is not a tensor of logits, float (2, classes)."""
    if not isinstance(value, Tensor):
        raise UserError(f"{name} gives a {type(value).__name__} where logits, a tensor (pictures, classes), are needed; wrap it by module:")
    if value.dim() != 2 or len(value) != 2 or not value.is_floating_point():
        given = "x".join(map(str, value.shape)) or "a single number"
        raise UserError(
            f"{name} gives {given} ({str(value.dtype).removeprefix('torch.')}) for 2 pictures, where logits, 2x(classes), are needed"
        )


def _why(network: nn.Module, name: str, shape: tuple[int, int], error: Exception) -> str:
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels != 3:
        return (
            f"{name} takes pictures of {first.in_channels} channel(s), and igkd's have three, red, green and blue: choose another network"
        )
    return (
        f"{name} cannot take pictures of {shape[0]}x{shape[1]} pixels ({first_line(error)}): choose a size that it takes by "
        "--image-size, or another network"
    )


@functools.lru_cache
def check_trainable(spec: NetworkSpec, lowest_scale: float = 1.0) -> None:
    """Try an untrained network for training: in evaluation and in training mode it must give logits of the spec's classes.

    One that passed is not tried again in this process: a sweep asks for each of its runs.

    Args:
        lowest_scale: the smallest factor on the sides of the images in training.

    Raises:
        UserError: it does not, or cannot take pictures of the spec's size, or of that size scaled.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_named(spec.name, len(spec.classes))
        check_copied(network, spec.name)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise UserError(f"{spec.name} has no weights to train: all of them are frozen (requires_grad)")
        count = outputs_of(network, spec.name, spec.image_shape)
        if count != len(spec.classes):
            raise UserError(f"{spec.name} gives logits of {count} classes, and there are {len(spec.classes)}: {_remedy(spec.name)}")
        for scale in dict.fromkeys((1.0, lowest_scale)):
            height, width = (round(side * scale) for side in spec.image_shape)
            with torch.no_grad():
                try:
                    answer = network.train()(torch.randn(2, 3, height, width))
                except Exception as error:  # the network may be anyone's, and raise anything
                    if scale == 1.0:
                        raise UserError(f"{_why(network, spec.name, spec.image_shape, error)} (in training)") from None
                    raise UserError(
                        f"{spec.name} cannot take pictures scaled to {height}x{width} pixels ({first_line(error)}): leave out "
                        "--low-resolution-epochs, or choose another network"
                    ) from None
            check_logits(answer, f"{spec.name}, in training,")


def check_twice_differentiable(spec: NetworkSpec) -> None:
    """Try whether the gradient of an untrained network of others by its pixels can be differentiated again, as the term `map` needs.

    Raises:
        UserError: it cannot.
    """
    if outside(spec.name)[0] is None:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, pixels = build_named(spec.name, len(spec.classes)).train(), torch.randn(2, 3, *spec.image_shape, requires_grad=True)
        try:
            with twice_differentiable():
                logits = network(pixels)
            torch.autograd.grad(logits.square().sum(), pixels, create_graph=True)[0].square().sum().backward()
        except Exception as error:  # the network may be anyone's, and raise anything
            raise UserError(
                f"the gradient of {spec.name} by its pixels cannot be differentiated again ({first_line(error)}), which a term of the loss "
                "needs: choose an arm without map, or another network"
            ) from None


def _remedy(name: str) -> str:
    return "let its function take the number of classes" if architecture(name)[0] == "module" else "choose another network"
