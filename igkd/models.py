"""Teacher and students: a MobileNet-V2 for small images, what is left of it after a cut, and lean students, with their checkpoints.

A checkpoint is a directory of `model.safetensors` and `model.json`; the JSON holds the `ModelSpec` that rebuilds the
network and whatever its maker wants to say about how it was made. Nothing is ever unpickled.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.models import MobileNetV2

from igkd import lean
from igkd.convolutions import avoid_slow_kernels
from igkd.errors import UserError
from igkd.files import read_json, write_bytes, write_json
from igkd.pictures import Interpolation, Scaling
from igkd.typed import short, typed

# (expansion t, channels c, blocks n, stride s): the paper's network, whose second stage keeps the resolution.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FEATURES = 19
CUTS = (0, 3, 5, 7, 9, 11, 13, 15, 17)
MAX_SIDE = 8192
"""Pixels of an image's side."""
ATTENTION_DIVIDER = {3: 2, 5: 2, 7: 2, 9: 4, 11: 4, 13: 4, 15: 8, 17: 20}


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
            lean.parse(self.lean)
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
        self.features = lean.features(lean.parse(spec.lean)) if spec.lean else _mobilenet(spec)
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


def _mobilenet(spec: ModelSpec) -> nn.Sequential:
    """The layers of a MobileNet-V2 before its classifier, less those that are cut off."""
    whole = MobileNetV2(
        num_classes=len(spec.classes),
        width_mult=spec.width,
        inverted_residual_setting=[list(stage) for stage in STAGES],
        dropout=0.0,
    )
    whole.features[0][0].stride = (spec.stride, spec.stride)
    kept: nn.Sequential = whole.features[: FEATURES - spec.cut]
    avoid_slow_kernels(kept)
    return kept


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


def attention_layer(cut: int) -> int:
    """Index into `features` where teacher and the student of this cut are tapped for attention transfer (PAPER: 19 // divider)."""
    if cut not in ATTENTION_DIVIDER:
        raise UserError(f"attention transfer needs a cut student; cut must be one of {', '.join(map(str, ATTENTION_DIVIDER))}, not {cut}")
    return FEATURES // ATTENTION_DIVIDER[cut]


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


def save(model: Classifier, directory: Path, made: Mapping[str, Any], half: bool = False) -> None:
    """Write `model.safetensors` and, last, `model.json`; each appears whole or not at all.

    Args:
        model: the network; its spec goes into the JSON.
        directory: created if missing.
        made: how it was made (JSON values): command, seed, accuracies.
        half: store floating-point tensors as float16, half the size; `load` gives float32 again.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    weights = safetensors.torch.save(state)
    write_bytes(directory / "model.safetensors", weights)
    write_json(
        directory / "model.json",
        {
            "format": 1,
            "spec": dataclasses.asdict(model.spec),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "parameters": parameter_count(model),
            "multiply_adds": multiply_adds(model),
            "made": dict(made),
        },
    )


def load(directory: Path | str) -> Classifier:
    """Read a checkpoint in evaluation mode.

    Raises:
        UserError: there is no checkpoint, it is damaged, or its tensors do not fit its spec.
    """
    directory = Path(directory)
    card = checkpoint_card(directory)
    try:
        weights = (directory / "model.safetensors").read_bytes()
    except OSError as error:
        raise UserError(f"{directory}/model.safetensors cannot be read ({error.strerror}); the checkpoint is incomplete") from None
    if hashlib.sha256(weights).hexdigest() != card["sha256"]:
        raise UserError(f"{directory}/model.safetensors does not match the sha256 in model.json: it was damaged or replaced")
    try:
        spec, state = ModelSpec.from_json(card["spec"]), safetensors.torch.load(weights)
        with torch.device("meta"):  # where a network of any size takes no memory
            expected = {name: tensor.shape for name, tensor in Classifier(spec).state_dict().items()}
        if wrong := sorted(name for name in expected.keys() | state.keys() if name not in state or state[name].shape != expected.get(name)):
            raise ValueError(f"{len(wrong)} tensor(s) do not fit its spec, such as {short(wrong[0])}")
        model = Classifier(spec)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except (SafetensorError, RuntimeError, TypeError, ValueError, OverflowError, KeyError) as error:
        raise UserError(
            f"{directory} is not a checkpoint of this project: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from None
    return model.eval()


def checkpoint_card(directory: Path | str) -> dict[str, Any]:
    """The `model.json` of a checkpoint: spec, sha256 of the weights, sizes, how it was made."""
    path = Path(directory) / "model.json"
    if not path.is_file():
        raise UserError(f"{directory} holds no checkpoint (no model.json there); make one with jobs.teacher or jobs.distill")
    card = read_json(path)
    if not isinstance(card, dict) or not {"spec", "sha256"} <= card.keys():
        raise UserError(f"{path} is not a checkpoint of this project: it names no spec and sha256")
    if not (isinstance(card["spec"], dict) and isinstance(card.setdefault("made", {}), dict)):
        raise UserError(f"{path} is not a checkpoint of this project: its spec, or how it was made, is no JSON object")
    return card
