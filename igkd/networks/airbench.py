"""The family `airbench`: plain convolutional networks that learn small pictures in few epochs.

The structure is that of Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498): a first convolution of 2x2
pixels that separates brightness from colour and edges from flat places, then blocks that halve the resolution by their largest values at
once, so that most of the arithmetic is at a quarter of the pixels and fewer. `airbench:64,256,256` has three blocks of these widths;
`airbench:2:32,128,128` steps by 2 pixels in the first convolution, so that everything after it is at a quarter of the pixels again.

Simpler than there: the first filters are not fitted to the data and fixed, but begin the same for all pictures and are then trained like
the others. The principal components of small patches of natural images are nearly these (Haar's functions of the four pixels, times
brightness and two differences of colours), and the normalisation that follows gives each unit variance, as whitening does. The
activation is ReLU instead of GELU; the other layers begin as torch's do, where the paper's begin as the identity; normalisations have a
scale of their own; and the last layer's output is not scaled.
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks.pooled import Pooled

MAX_WIDTH, MAX_BLOCKS = 1024, 6
_NAME = re.compile(f"(?:2:)?[1-9][0-9]{{0,3}}(?:,[1-9][0-9]{{0,3}}){{0,{MAX_BLOCKS - 1}}}")


class Airbench(NamedTuple):
    """The architecture of an airbench network."""

    stem: int
    """Stride of the first convolution: 1 or 2."""
    widths: tuple[int, ...]
    """Channels of 1 to MAX_BLOCKS blocks, each 1 to MAX_WIDTH."""

    def __str__(self) -> str:
        return f"{'2:' if self.stem == 2 else ''}{','.join(map(str, self.widths))}"


class Largest(nn.Module):
    """The largest value of each channel over all positions: maps (B, C, H, W) to (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3), keepdim=True)


def parse(text: str, family: str = "airbench") -> Airbench:
    """The architecture for a name's options.

    Args:
        family: for the message, the family whose name it is.

    Raises:
        UserError: the options are malformed or out of range.
    """
    if _NAME.fullmatch(text) is not None:  # the pattern bounds the text's length and every number in it
        widths = tuple(int(width) for width in text.removeprefix("2:").split(","))
        if max(widths) <= MAX_WIDTH:
            return Airbench(2 if text.startswith("2:") else 1, widths)
    raise UserError(
        f"{short(f'{family}:{text}')} names no network; one is {family}:32,128,128 (the widths of at most {MAX_BLOCKS} blocks, at most "
        f"{MAX_WIDTH} each), or {family}:2:32,128,128, whose first convolution steps by 2"
    )


def first_filters() -> Tensor:
    """24 filters (24, 3, 2, 2) of norm 1: 12 that are orthogonal to each other, and their negatives, since ReLU lets only one sign pass."""
    with torch.device("cpu"):  # also for a network on "meta", where these numbers would only cost time
        places = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
        colours = nn.functional.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]))
        filters = torch.einsum("fc,gp->fgcp", colours, places).reshape(12, 3, 2, 2)
        return torch.cat([filters, -filters])


def features(architecture: Airbench, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> nn.Sequential:
    """The layers before the classifier, freshly initialised: they map float (B, 3, H, W) to (B, last width, 1, 1).

    Args:
        norm: the normalisation after each convolution; takes the number of channels.
    """
    first = nn.Conv2d(3, 24, 2, stride=architecture.stem, bias=False)
    with torch.no_grad():
        first.weight.copy_(first_filters())
    layers: list[nn.Module] = [nn.Sequential(first, norm(24), nn.ReLU(inplace=True))]
    before = 24
    for width in architecture.widths:
        layers.append(
            nn.Sequential(
                *(nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2), norm(width), nn.ReLU(inplace=True)),
                *(nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width), nn.ReLU(inplace=True)),
            )
        )
        before = width
    return nn.Sequential(*layers, Largest())


def canonical(options: str) -> str:
    """The options in their canonical spelling."""
    return str(parse(options))


def build(options: str, classes: int) -> nn.Module:
    """The network, freshly initialised by torch's generator; it maps float (B, 3, H, W), normalised, to logits (B, classes)."""
    return Pooled(features(parse(options)), classes)


def tap(options: str, teacher: str) -> str | None:
    """Always None: no layer corresponds to one of a teacher."""
    return None


def student(options: str, teacher: str | None, side: int) -> str:
    """The options in their canonical spelling; they leave nothing open."""
    return canonical(options)
