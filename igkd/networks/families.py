"""The registry of families of networks. A network's name is FAMILY, or FAMILY:OPTIONS, and says all about its architecture.

A new family is one module with the functions of `Family`, and one line here.
"""

from typing import Protocol

from torch import nn

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks import lean, mobilenet, torchvision


class Family(Protocol):
    """What a family's module offers; `options` is what stands behind the colon of a name."""

    def canonical(self, options: str) -> str:
        """The same options as every name of this network has them; raises UserError where they name none."""

    def build(self, options: str, classes: int) -> nn.Module:
        """Freshly initialised by torch's generator: float (B, 3, H, W), normalised, to logits (B, classes)."""

    def tap(self, options: str) -> str | None:
        """Path of the layer at which a teacher of this family and this student are compared by attention transfer; None without one."""

    def student(self, options: str, teacher: str | None, side: int) -> str:
        """A student's options with what they leave open: see `student_name`."""


FAMILIES: dict[str, Family] = {"mobilenet": mobilenet, "lean": lean, "torchvision": torchvision}


def family_of(name: str) -> str:
    """The family that a name begins with."""
    return name.partition(":")[0]


def _split(name: str) -> tuple[Family, str]:
    family, _, options = name.partition(":")
    if family not in FAMILIES:
        raise UserError(f"{short(name)} names no network: its family must be one of {', '.join(FAMILIES)}")
    return FAMILIES[family], options


def canonical_name(name: str) -> str:
    """The one name of a network.

    Raises:
        UserError: the name is no network's.
    """
    family, options = _split(name)
    return ":".join(filter(None, [family_of(name), family.canonical(options)]))


def build_named(name: str, classes: int) -> nn.Module:
    """A network by its name, freshly initialised by torch's generator: float (B, 3, H, W), normalised, to logits (B, classes)."""
    family, options = _split(name)
    return family.build(options, classes)


def student_name(name: str, teacher: str, image_shape: tuple[int, int]) -> str:
    """The full name of a student: what its name leaves open is as the teacher has it, if that is of the same family.

    Args:
        name: as the user gave it, such as mobilenet:cut=5.
        teacher: the teacher's name, such as mobilenet:width=0.5.
        image_shape: (height, width) in pixels of the images.

    Raises:
        UserError: the name is no network's.
    """
    family, options = _split(name)
    like = teacher.partition(":")[2] if family_of(teacher) == family_of(name) else None
    return ":".join(filter(None, [family_of(name), family.student(options, like, max(image_shape))]))


def tap_of(student: str, teacher: str) -> str | None:
    """Path of the layer at which this student and its teacher are compared by attention transfer; None where no layers correspond."""
    family, options = _split(student)
    return family.tap(options) if family_of(student) == family_of(teacher) else None
