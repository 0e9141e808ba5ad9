"""The registry of families of networks. A network's name, FAMILY or FAMILY:OPTIONS, determines its architecture.

To add a family, write one module with the functions of `Family`, and add one entry to `FAMILIES`. A family of networks that others have
made has the functions of `Outside`, too, and an entry in `OUTSIDE`.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks import airbench, homogeneous, lean, mobilenet, module, timm, torchvision
from igkd.networks.preparation import Preparation
from igkd.networks.scaled import FAMILY as SCALED
from igkd.networks.scaled import ScaledFamily, inner

T = TypeVar("T")


class Family(Protocol):
    """The functions of a family's module; `options` is the part of a name after the first colon."""

    def canonical(self, options: str) -> str:
        """The options in their canonical spelling, so that a network has one name; raises UserError if they are invalid."""

    def build(self, options: str, classes: int) -> nn.Module:
        """The network, freshly initialised by torch's generator; it maps float (B, 3, H, W), normalised, to logits (B, classes)."""

    def tap(self, options: str, teacher: str) -> str | None:
        """Path of the layer where attention transfer compares this student with a teacher of this family; None if there is none in both.

        Args:
            options, teacher: options of both.
        """

    def student(self, options: str, teacher: str | None, side: int) -> str:
        """A student's options, with those that the user left open filled in; see `student_name`."""


class Outside(Protocol):
    """What the module of a family has besides, if its networks were made by others: they may be trained already."""

    def preparation(self, options: str) -> Preparation:
        """How pictures are prepared for this network, as far as it says so."""

    def outputs(self, options: str) -> int | None:
        """Number of classes if none is asked for; None if that is not known."""

    def categories(self, options: str, count: int) -> tuple[str, ...] | None:
        """The names of the classes of a network with `count` of them; None if they are not known."""

    def pretrained(self, options: str) -> nn.Module:
        """The network with its default weights; raises UserError if they cannot be had."""


FAMILIES: dict[str, Family] = {
    "mobilenet": mobilenet,
    "lean": lean,
    "airbench": airbench,
    "homogeneous": homogeneous,
    "torchvision": torchvision,
    "timm": timm,
    "module": module,
}
OUTSIDE: dict[str, Outside] = {"torchvision": torchvision, "timm": timm, "module": module}
_SCALED = ScaledFamily(dict(FAMILIES), OUTSIDE)
FAMILIES[SCALED] = _SCALED
IMAGENET = ("torchvision", "timm")
"""Families whose networks with 1,000 classes know those of ImageNet."""


def family_of(name: str) -> str:
    """The part of a name before the first colon."""
    return name.partition(":")[0]


def architecture(name: str) -> tuple[str, str]:
    """The family of a network and its options, without the layer of a `scaled` one that scales the input."""
    family, _, options = inner(name).partition(":")
    return family, options


def _split(name: str) -> tuple[Family, str]:
    family, _, options = name.partition(":")
    if family not in FAMILIES:
        raise UserError(f"{short(name)} names no network: its family must be one of {', '.join(FAMILIES)}")
    return FAMILIES[family], options


def outside(name: str) -> tuple[Outside | None, str]:
    """The functions of `Outside` for a network's name, None if its family has none; and the name's options."""
    found = OUTSIDE.get(architecture(name)[0])
    return _SCALED if found is not None and family_of(name) == SCALED else found, name.partition(":")[2]


def canonical_name(name: str) -> str:
    """A network's name in its canonical spelling.

    Raises:
        UserError: the name is invalid.
    """
    family, options = _split(name)
    return ":".join(filter(None, [family_of(name), family.canonical(options)]))


def build_named(name: str, classes: int) -> nn.Module:
    """The network with this name, freshly initialised; it maps float (B, 3, H, W), normalised, to logits (B, classes)."""
    family, options = _split(name)
    return family.build(options, classes)


class Unfilled(TorchFunctionMode):
    """Leaves out what only gives tensors their first values, of which those on the device "meta" have none.

    torch (2.15) would import its compiler to draw no numbers there, which takes more than a second.
    """

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", None) == nn.init.__name__ or function in FILLING:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return function(*args, **(kwargs or {}))


FILLING = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.copy_)


def on_meta(name: str, compute: Callable[[], T]) -> T:
    """Call a function that builds a network and looks at shapes alone, with the network on the device "meta", where it takes no memory.

    Some networks compute with values while they are made or run, which "meta" has not; for those it is called again without it. Code of
    the user's is not run there at all: a tensor that it makes once and keeps would have no values ever after.

    Args:
        name: of the network.
    """
    with torch.random.fork_rng(devices=[]):
        if architecture(name)[0] == "module":
            return compute()
        try:
            with torch.device("meta"), Unfilled():
                return compute()
        except UserError as error:
            if error.__cause__ is None:  # not an error of the network's own code
                raise
        except Exception:  # code of torchvision and timm may raise anything; what is wrong anywhere is raised again
            pass
        return compute()


def student_name(name: str, teacher: str, image_shape: tuple[int, int]) -> str:
    """The full name of a student: options that the user left open are copied from a teacher of the same family.

    Args:
        name: the name that the user gave, such as mobilenet:cut=5.
        teacher: the teacher's name, such as mobilenet:width=0.5.
        image_shape: (height, width) in pixels of the images.

    Raises:
        UserError: the name is invalid.
    """
    family, options = _split(name)
    like = teacher.partition(":")[2] if family_of(teacher) == family_of(name) else None
    return ":".join(filter(None, [family_of(name), family.student(options, like, max(image_shape))]))


def tap_of(student: str, teacher: str) -> str | None:
    """Path of the layer where attention transfer compares this student with its teacher; None if no layers correspond."""
    family, options = _split(student)
    return family.tap(options, _split(teacher)[1]) if family_of(student) == family_of(teacher) else None
