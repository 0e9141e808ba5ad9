"""The registry of families of networks. A network's name, FAMILY or FAMILY:OPTIONS, determines its architecture.

To add a family, write one module with the functions of `Family`, and add one entry to `FAMILIES`.
"""

from typing import Protocol

from torch import nn

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks import lean, mobilenet, torchvision


class Family(Protocol):
    """The functions of a family's module; `options` is the part of a name after the first colon."""

    def canonical(self, options: str) -> str:
        """The options in their canonical spelling, so that a network has one name; raises UserError if they are invalid."""

    def build(self, options: str, classes: int) -> nn.Module:
        """The network, freshly initialised by torch's generator; it maps float (B, 3, H, W), normalised, to logits (B, classes)."""

    def tap(self, options: str) -> str | None:
        """Path of the layer where attention transfer compares this student with a teacher of this family; None if there is none."""

    def student(self, options: str, teacher: str | None, side: int) -> str:
        """A student's options, with those that the user left open filled in; see `student_name`."""


FAMILIES: dict[str, Family] = {"mobilenet": mobilenet, "lean": lean, "torchvision": torchvision}


def family_of(name: str) -> str:
    """The part of a name before the first colon."""
    return name.partition(":")[0]


def _split(name: str) -> tuple[Family, str]:
    family, _, options = name.partition(":")
    if family not in FAMILIES:
        raise UserError(f"{short(name)} names no network: its family must be one of {', '.join(FAMILIES)}")
    return FAMILIES[family], options


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
    return family.tap(options) if family_of(student) == family_of(teacher) else None
