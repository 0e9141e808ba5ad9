"""What a network is here: its specification, the classifier that takes pixels, and its sizes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from igkd.base.schema import short, typed
from igkd.images.codec import Interpolation, Scaling
from igkd.networks.families import build_named, canonical_name

MAX_SIDE = 8192
"""Pixels of an image's side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """All that is needed to rebuild a network and to feed it."""

    name: str = "mobilenet"
    """Its architecture, as `networks.families` names it: mobilenet:cut=5, lean:2:32x1,64x1, torchvision:resnet18."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    image_shape: tuple[int, int]
    """(height, width) in pixels of the images it was trained on."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Subtracted from pixels in [0, 1], per channel, before the network sees them."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Divides the pixels after that, per channel."""
    short_side: int = 0
    """Where pictures are scaled to `image_shape`: the pixels of their shorter side before the crop, as `codec.Scaling` has it."""
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", canonical_name(self.name))

    @property
    def scaling(self) -> Scaling:
        """How pictures of another size are made the network's size."""
        return Scaling(self.short_side, self.interpolation)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "NetworkSpec":
        """What a checkpoint says; raises TypeError, ValueError or UserError if that is no network."""
        if "name" not in data:
            raise ValueError("its spec has no name: an older igkd made it; train it anew")
        spec = typed(cls, data)
        for name, sound in (
            ("image_shape", all(1 <= side <= MAX_SIDE for side in spec.image_shape)),
            ("short_side", spec.short_side == 0 or max(spec.image_shape) <= spec.short_side <= MAX_SIDE),
            ("mean", len(spec.mean) in (1, 3)),
            ("std", len(spec.std) in (1, 3) and min(spec.std) > 0),
        ):
            if not sound:
                raise ValueError(f"{name} cannot be {short(getattr(spec, name))}")
        return spec


class Classifier(nn.Module):
    """A network of any family that takes pixels in [0, 1] and normalises them itself.

    `forward(pixels)` maps float (B, 3, H, W) in [0, 1] to logits (B, classes); `from_normalised` starts behind the
    normalisation, which is where integrated gradients have their baseline.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetworkSpec, network: nn.Module | None = None) -> None:
        """Args:
        network: float (B, 3, H, W), normalised, to logits (B, classes); without one, that of the spec's name, freshly initialised by
            torch's generator.
        """
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)
        self.network = build_named(spec.name, len(spec.classes)) if network is None else network

    def normalise(self, pixels: Tensor) -> Tensor:
        """Float (B, 3, H, W) pixels in [0, 1] to the network's own scale, same shape."""
        return (pixels - self.mean) / self.std

    def from_normalised(self, x: Tensor) -> Tensor:
        """Normalised float (B, 3, H, W) to logits (B, classes)."""
        logits: Tensor = self.network(x)
        return logits

    def forward(self, pixels: Tensor, taps: tuple[str, ...] = ()) -> Any:
        """Logits (B, classes); with `taps`, paths of layers in `network` such as "features.9", (logits, their outputs by path), from the
        same pass."""
        if not taps:
            return self.from_normalised(self.normalise(pixels))
        seen: dict[str, Tensor] = {}
        hooks = [_keep_output(self.network, path, seen) for path in taps]
        try:
            return self.from_normalised(self.normalise(pixels)), seen
        finally:
            for hook in hooks:
                hook.remove()


def _keep_output(network: nn.Module, path: str, seen: dict[str, Tensor]) -> torch.utils.hooks.RemovableHandle:
    """Have a layer put what it gives into `seen`, until the handle's `remove`."""

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[path] = output

    return network.get_submodule(path).register_forward_hook(keep)


class Deployed(nn.Module):
    """A network that takes pixels as they are decoded and a device has them: uint8 (B, H, W, 3) to logits float32 (B, classes)."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, pixels: Tensor) -> Any:
        return self.model(pixels.permute(0, 3, 1, 2).float() / 255)


def build(spec: NetworkSpec, seed: int) -> Classifier:
    """A freshly initialised network; the same seed gives the same weights, and the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(spec)


def values_a_channel(spec: NetworkSpec, scale: float = 1.0) -> int:
    """Pixels of the smallest feature maps that a batch normalisation of this network sees of one image.

    Args:
        scale: factor on the image's sides.
    """
    found: list[int] = []
    with torch.device("meta"), torch.no_grad():  # shapes alone
        network = Classifier(spec).eval()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].shape[2:].numel()))
        network(torch.zeros(1, 3, *(round(side * scale) for side in spec.image_shape)))
    return min(found)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: Classifier) -> int:
    """Multiply-adds of one image's convolutions and linear layers, at the image shape of its spec."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *model.spec.image_shape, device=device))
    model.train(was_training)
    return int(counter.get_total_flops()) // 2
