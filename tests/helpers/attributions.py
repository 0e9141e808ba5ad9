"""Networks whose maps have a closed form, or that engines may stumble over; and maps of them."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from igkd.attribution import Attribution, attributor
from igkd.base.choices import Engine
from igkd.networks.network import Classifier, NetworkSpec

STEPS = 8


@functools.lru_cache(maxsize=4)
def one_attributor(model: Any, engine: Engine) -> Any:
    """Made once for a network, since OpenVINO takes seconds to compile it; the graph is the same for any number of steps."""
    return attributor(model, "ig", engine, STEPS)


def integrated_gradients(model: nn.Module, pixels: Tensor, labels: Tensor, steps: int, engine: Engine = "captum") -> Attribution:
    attribute = one_attributor(model, engine)
    attribute.steps = steps
    result: Attribution = attribute(pixels, labels, torch.arange(len(pixels)))
    return result


class StandIn(nn.Module):
    """What `integrated_gradients` needs of a network, around a function of (B, 3 * H * W) normalised values to (B, classes)."""

    def __init__(self, weight: Tensor, shape: tuple[int, int], power: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.shape, self.power = shape, power

    def normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - 0.4) / 0.25

    def from_normalised(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.weight.T
        return {"linear": z + 3, "square": z**2 + z - 1, "softplus": nn.functional.softplus(4 * z)}[self.power]


def stand_in(kind: type[StandIn], power: str, positive: bool = False) -> tuple[StandIn, Tensor, Tensor, Tensor]:
    """A stand-in of 4 classes for 5x4 images, six images, labels, and their normalised values."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 60, generator=generator) / 8
    model = kind(weight.abs() if positive else weight, (5, 4), power)
    pixels = torch.rand(6, 3, 5, 4, generator=generator)
    return model, pixels, torch.tensor([3, 0, 1, 2, 2, 3]), model.normalise(pixels)


def least_cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).min())


class Layers(Classifier):
    """A classifier of 16x16 pixels and three classes around some layers of eight channels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__(NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), mean=(0.5, 0.45, 0.4), std=(0.24, 0.25, 0.26)))
        self.body, self.head = body, nn.Linear(8, 3)

    def from_normalised(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean(dim=(2, 3)))
        return logits


class Branching(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > -100 else x  # torch.fx raises: it has no value to look at


class Typed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if type(x) is Tensor else 2 * x)  # torch.fx traces the other way, and does not say so


class Twice(nn.Module):
    """One convolution under two batch norms: folding the first into it changes the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.one(self.conv(x))) + torch.tanh(self.two(self.conv(x + 1)))


class OwnBatchNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Waves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x).real.tanh()


def layers(kind: str) -> Layers:
    """A network with statistics that folding has to take along; smooth, so that rounding stays rounding."""
    torch.manual_seed(0)
    conv, norm, more = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
    bodies: dict[str, nn.Module] = {
        "plain": nn.Sequential(conv, norm, nn.SiLU()),
        "branching": Branching(conv, norm, nn.SiLU()),
        "typed": Typed(conv, norm, nn.SiLU()),
        "twice": Twice(),
        "own batch norm": nn.Sequential(conv, OwnBatchNorm(8), nn.SiLU()),
        "in place": nn.Sequential(nn.SiLU(inplace=True), conv, norm, nn.SiLU(inplace=True)),
        "dropout": nn.Sequential(conv, norm, nn.SiLU(), nn.Dropout(0.5), StochasticDepth(0.5, "row")),
        "layer norm": nn.Sequential(conv, nn.LayerNorm([8, 14, 14]), nn.SiLU(), more),
        "waves": nn.Sequential(conv, norm, Waves()),
        "linear norm": nn.Sequential(conv, norm, nn.GroupNorm(2, 8), nn.GELU()),
    }
    found = Layers(bodies[kind])
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.2, 0.6)
    return found.eval()
