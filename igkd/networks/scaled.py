"""The family `scaled`: any other network, behind a layer that scales its input, `scaled:160:timm:mobilenetv3_small_050`.

So a student sees the crop that its teacher sees at another resolution, and a network made for large pictures takes small ones. Pictures,
maps and stored rows keep their size: the layer is part of the network, in training, in evaluation and in exported files.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks.preparation import Preparation

if TYPE_CHECKING:
    from igkd.networks.families import Family, Outside

FAMILY = "scaled"
INNER = "network."
"""What the names of the inner network's tensors begin with."""
_OPTIONS = re.compile(r"([1-9][0-9]{0,3}):(.+)", re.ASCII | re.DOTALL)


@torch.fx.wrap  # one step for torch.fx, which cannot trace what depends on a size
def scaled(x: Tensor, side: int) -> Tensor:
    """Scale float (B, C, H, W) so that its shorter side has `side` pixels: bilinear, with antialiasing where it gets smaller."""
    height, width = x.shape[-2:]
    shorter = min(height, width)
    return F.interpolate(x, (round(height * side / shorter), round(width * side / shorter)), mode="bilinear", antialias=True)


class Scaled(nn.Module):
    """A network that scales its input, float (B, 3, H, W), before another one takes it."""

    def __init__(self, side: int, network: nn.Module) -> None:
        super().__init__()
        self.side, self.network = side, network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(scaled(x, self.side))
        return logits


def inner(name: str) -> str:
    """The name of the network behind the layer that scales; of any other network, its own name."""
    family, _, options = name.partition(":")
    return split(options)[1] if family == FAMILY else name


def split(options: str) -> tuple[int, str]:
    """The shorter side in pixels, and the name of the network that sees it.

    Raises:
        UserError: the options are malformed, or scale twice.
    """
    found = _OPTIONS.fullmatch(options)
    if found is None or found[2].startswith(f"{FAMILY}:"):
        raise UserError(
            f"{short(f'{FAMILY}:{options}')} names no network; one is {FAMILY}:160:timm:mobilenetv3_small_050 (the shorter side in pixels "
            "of what the network sees, and its name)"
        )
    return int(found[1]), found[2]


class ScaledFamily:
    """The functions of a family and of an outside one, by those of the inner network's family."""

    def __init__(self, families: "Mapping[str, Family]", outside: "Mapping[str, Outside]") -> None:
        self.families, self.outside = families, outside

    def _inner(self, options: str) -> "tuple[int, str, Family, str]":
        """Side, family's name, family and options of the inner network."""
        side, name = split(options)
        family, _, of_family = name.partition(":")
        if family not in self.families:
            raise UserError(f"{short(name)} names no network: its family must be one of {', '.join(self.families)}")
        return side, family, self.families[family], of_family

    def canonical(self, options: str) -> str:
        """The options in their canonical spelling."""
        side, name, family, of_family = self._inner(options)
        return ":".join(filter(None, [str(side), name, family.canonical(of_family)]))

    def build(self, options: str, classes: int) -> nn.Module:
        """The network, freshly initialised by torch's generator; it maps float (B, 3, H, W), normalised, to logits (B, classes)."""
        side, _, family, of_family = self._inner(options)
        return Scaled(side, family.build(of_family, classes))

    def tap(self, options: str, teacher: str) -> str | None:
        """Always None: `networks.taps` finds layers of equal size."""
        return None

    def student(self, options: str, teacher: str | None, side: int) -> str:
        """The options; what they leave open of the inner network has its default."""
        seen, name, family, of_family = self._inner(options)
        return ":".join(filter(None, [str(seen), name, family.student(of_family, None, seen)]))

    def _outside(self, options: str) -> "tuple[Outside, str]":
        _, name, _, of_family = self._inner(options)
        return self.outside[name], of_family

    def preparation(self, options: str) -> Preparation:
        """The inner network's mean and deviation; pictures of any size are scaled."""
        found, of_family = self._outside(options)
        own = found.preparation(of_family)
        return Preparation(mean=own.mean, std=own.std)

    def outputs(self, options: str) -> int | None:
        """Number of classes if none is asked for; None if that is not known."""
        found, of_family = self._outside(options)
        return found.outputs(of_family)

    def categories(self, options: str, count: int) -> tuple[str, ...] | None:
        """The names of the classes of a network with `count` of them; None if they are not known."""
        found, of_family = self._outside(options)
        return found.categories(of_family, count)

    def pretrained(self, options: str) -> nn.Module:
        """The network with its default weights; raises UserError if they cannot be had."""
        found, of_family = self._outside(options)
        return Scaled(split(options)[0], found.pretrained(of_family))
