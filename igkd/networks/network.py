"""What a network is here: its specification, the classifier that takes pixels, and its sizes."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.base.schema import short, typed
from igkd.images.codec import Interpolation, Scaling
from igkd.networks.lean import features, parse
from igkd.networks.mobilenet import CUTS, build_features

MAX_SIDE = 8192
"""Pixels of an image's side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to rebuild a network and to feed it."""

    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    image_shape: tuple[int, int]
    """(height, width) in pixels of the images it was trained on."""
    cut: int = 0
    """Number of trailing `features` entries removed; 0 is the whole network."""
    width: float = 1.0
    """Width multiplier of every layer (Sandler et al. 2018)."""
    stride: int = 1
    """Stride of the stem: 1 for 32x32 images, 2 for larger ones."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Subtracted from pixels in [0, 1], per channel, before the network sees them."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Divides the pixels after that, per channel."""
    lean: str = ""
    """The architecture of a lean student, as `igkd.lean` names it: cut is then 0, width and stride say what the teacher has."""
    short_side: int = 0
    """Where pictures are scaled to `image_shape`: the pixels of their shorter side before the crop, as `pictures.Scaling` has it."""
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if self.cut not in CUTS:
            raise UserError(f"cut {self.cut} is not one of {', '.join(map(str, CUTS))}")
        if self.lean:
            parse(self.lean)
            if self.cut:
                raise UserError(f"a lean student has no layers of the teacher's to cut off: its cut is 0, not {self.cut}")

    @property
    def scaling(self) -> Scaling:
        """How pictures of another size are made the network's size."""
        return Scaling(self.short_side, self.interpolation)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelSpec":
        """What a checkpoint says; raises TypeError or ValueError if that is no network."""
        spec = typed(cls, data)
        for name, sound in (
            ("image_shape", all(1 <= side <= MAX_SIDE for side in spec.image_shape)),
            ("stride", 1 <= spec.stride <= MAX_SIDE),
            ("short_side", spec.short_side == 0 or max(spec.image_shape) <= spec.short_side <= MAX_SIDE),
            ("mean", len(spec.mean) in (1, 3)),
            ("std", len(spec.std) in (1, 3) and min(spec.std) > 0),
        ):
            if not sound:
                raise ValueError(f"{name} cannot be {short(getattr(spec, name))}")
        return spec


class ImageClassifier(nn.Module, abc.ABC):
    """A network that takes pixels in [0, 1] and normalises them itself.

    `forward(pixels)` maps float (B, 3, H, W) in [0, 1] to logits (B, classes); `from_normalised` starts behind the
    normalisation, which is where integrated gradients have their baseline.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Float (B, 3, H, W) pixels in [0, 1] to the network's own scale, same shape."""
        return (pixels - self.mean) / self.std

    @abc.abstractmethod
    def from_normalised(self, x: Tensor) -> Tensor:
        """Normalised float (B, 3, H, W) to logits (B, classes)."""

    def forward(self, pixels: Tensor) -> Any:
        return self.from_normalised(self.normalise(pixels))


class Classifier(ImageClassifier):
    """A MobileNet-V2, whole or cut, or a lean student."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.features = features(parse(spec.lean)) if spec.lean else build_features(len(spec.classes), spec.cut, spec.width, spec.stride)
        channels = next(m.num_features for m in reversed(list(self.features.modules())) if isinstance(m, nn.BatchNorm2d))
        self.classifier = nn.Linear(channels, len(spec.classes))
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def from_normalised(self, x: Tensor) -> Tensor:
        """Normalised float (B, 3, H, W) to logits (B, classes)."""
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits

    def forward(self, pixels: Tensor, tap: int | None = None) -> Any:
        """Logits (B, classes); with `tap`, also the output (B, C, h, w) of `features[tap]`, from the same pass."""
        if tap is None:
            return self.from_normalised(self.normalise(pixels))
        tapped = self.features[: tap + 1](self.normalise(pixels))
        return self.classifier(self.features[tap + 1 :](tapped).mean(dim=(2, 3))), tapped


class Deployed(nn.Module):
    """A network that takes pixels as they are decoded and a device has them: uint8 (B, H, W, 3) to logits float32 (B, classes)."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, pixels: Tensor) -> Any:
        return self.model(pixels.permute(0, 3, 1, 2).float() / 255)


def build(spec: ModelSpec, seed: int) -> Classifier:
    """A freshly initialised network; the same seed gives the same weights, and the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(spec)


def values_a_channel(spec: ModelSpec, scale: float = 1.0) -> int:
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


def multiply_adds(model: ImageClassifier) -> int:
    """Multiply-adds of one image's convolutions and linear layers, at the image shape of its spec."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *model.spec.image_shape, device=device))
    model.train(was_training)
    return int(counter.get_total_flops()) // 2
