"""A network's specification, the classifier that takes pixels, and counts of parameters and multiply-adds."""

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from igkd.base.schema import short, typed
from igkd.images.codec import Interpolation, Scaling
from igkd.networks.families import build_named, canonical_name, on_meta
from igkd.networks.layers import avoid_slow_kernels, plain
from igkd.networks.preparation import out_of_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """All that is needed to rebuild a network and to prepare its input."""

    name: str = "mobilenet"
    """The network's name (see `networks.families`): mobilenet:cut=5, lean:2:32x1,64x1, torchvision:resnet18."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    image_shape: tuple[int, int]
    """(height, width) in pixels of the images it was trained on."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """For each channel, subtracted from pixels in [0, 1]."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """For each channel, divides the pixels after the mean was subtracted."""
    short_side: int = 0
    """With `interpolation`, how pictures are scaled to `image_shape`; see `codec.Scaling`."""
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", canonical_name(self.name))

    @property
    def scaling(self) -> Scaling:
        """How pictures are scaled to the network's size."""
        return Scaling(self.short_side, self.interpolation)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "NetworkSpec":
        """The spec from a checkpoint's JSON; raises TypeError, ValueError or UserError if it is invalid."""
        if "name" not in data:
            raise ValueError("its spec has no name: an older igkd made it; train it anew")
        spec = typed(cls, data)
        if wrong := out_of_range(spec.image_shape, spec.short_side, spec.mean, spec.std):
            raise ValueError(f"{wrong} cannot be {short(getattr(spec, wrong))}")
        return spec


class Classifier(nn.Module):
    """A network of any family that takes pixels in [0, 1] and normalises them itself.

    `forward(pixels)` maps float (B, 3, H, W) in [0, 1] to logits (B, classes). `from_normalised` takes normalised pixels, the space in
    which integrated gradients are computed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetworkSpec, network: nn.Module | None = None) -> None:
        """Args:
        network: maps float (B, 3, H, W), normalised, to logits (B, classes); by default the network of the spec's name, freshly
            initialised by torch's generator.
        """
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)
        self.network = avoid_slow_kernels(build_named(spec.name, len(spec.classes)) if network is None else network)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise float pixels (B, 3, H, W) in [0, 1] by the network's mean and std."""
        return (pixels - self.mean) / self.std

    def from_normalised(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of normalised float (B, 3, H, W)."""
        logits: Tensor = self.network(x)
        return logits

    def forward(self, pixels: Tensor, taps: tuple[str, ...] = ()) -> Any:
        """Logits (B, classes) of pixels float (B, 3, H, W) in [0, 1]; with `taps`, (logits, outputs of the tapped layers by path).

        Args:
            taps: paths of layers in `network`, such as "features.9"; their outputs come from the same pass.
        """
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
    """Register a hook that stores a layer's output in `seen[path]`, until `remove` of the returned handle is called."""

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[path] = output

    return network.get_submodule(path).register_forward_hook(keep)


class Deployed(nn.Module):
    """A network for export: takes decoded pixels, uint8 (B, H, W, 3), and gives logits float32 (B, classes)."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = plain(copy.deepcopy(model).eval())

    def forward(self, pixels: Tensor) -> Any:
        return self.model(pixels.permute(0, 3, 1, 2).float() / 255)


def build(spec: NetworkSpec, seed: int) -> Classifier:
    """A freshly initialised network; the same seed gives the same weights, and torch's global generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(spec)


def values_a_channel(spec: NetworkSpec, scale: float = 1.0) -> int:
    """Number of pixels of the smallest feature maps, of one image, that a batch normalisation of this network gets; of the image, if there
    is none.

    Args:
        scale: factor on the image's sides.
    """

    def sizes() -> list[int]:
        found: list[int] = []
        network = Classifier(spec).eval()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].shape[2:].numel()))
        with torch.no_grad():
            network(torch.zeros(1, 3, *(round(side * scale) for side in spec.image_shape)))
        return found

    return min(on_meta(spec.name, sizes), default=spec.image_shape[0] * spec.image_shape[1])


def channels_at(model: Classifier, path: str) -> int:
    """Number of channels that a layer of a network gives."""
    weights = next(model.parameters())
    was_training = model.training
    with torch.inference_mode():
        outputs = model.eval()(torch.zeros(1, 3, *model.spec.image_shape, dtype=weights.dtype, device=weights.device), (path,))[1]
    model.train(was_training)
    return int(outputs[path].shape[1])


def parameter_count(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: Classifier) -> int:
    """Number of multiply-adds of convolutions and linear layers for one image of the spec's shape."""
    from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

    # torch (2.15) imports its compiler, which takes more than a second, to have it leave this function alone. It is never compiled.
    count = inspect.unwrap(_FlopCounterMode.__torch_dispatch__)
    count.__dynamo_disable = count
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *model.spec.image_shape, device=device))
    model.train(was_training)
    return int(counter.get_total_flops()) // 2
