"""How pictures are prepared for a network, as far as the network itself says so."""

from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.images.codec import Interpolation

MAX_SIDE = 8192
"""Largest side of a picture in pixels."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Fields of `NetworkSpec` of the same names; None stands for what is not known."""

    image_shape: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    short_side: int = 0
    """Belongs to `image_shape`: another size is scaled by the rule for short_side=0."""
    interpolation: Interpolation = "bicubic"

    def overridden(
        self, image_size: int | None = None, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
    ) -> "Preparation":
        """The preparation with what the user gave instead; None leaves a value as it is."""
        found = self
        if image_size is not None and (image_size, image_size) != self.image_shape:
            found = replace(found, image_shape=(image_size, image_size), short_side=0)
        return replace(found, mean=self.mean if mean is None else mean, std=self.std if std is None else std)

    def complete(self, name: str) -> dict[str, Any]:
        """The arguments of `NetworkSpec`.

        Args:
            name: the network's name, for the message.

        Raises:
            UserError: size, mean or deviation is not known, or is none that a network can have.
        """
        flags = {"image_shape": "--image-size N", "mean": "--mean R G B", "std": "--std R G B"}
        missing = [flag for field, flag in flags.items() if getattr(self, field) is None]
        if missing:
            raise UserError(
                f"{name} does not say how its pictures are prepared: `igkd import {name}` with {' '.join(missing)} (of pixels in [0, 1]) "
                "makes a checkpoint that every job takes"
            )
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        if wrong := out_of_range(**{field: found[field] for field in ("image_shape", "short_side", "mean", "std")}):
            raise UserError(f"the {wrong} of {name} cannot be {short(found[wrong])}")
        return found


def out_of_range(image_shape: tuple[int, ...], short_side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> str | None:
    """Which of these arguments no network can have; None if all are sound."""
    sound = {
        "image_shape": len(image_shape) == 2 and all(1 <= side <= MAX_SIDE for side in image_shape),
        "short_side": short_side == 0 or max(image_shape) <= short_side <= MAX_SIDE,
        "mean": len(mean) in (1, 3) and all(map(isfinite, mean)),
        "std": len(std) in (1, 3) and all(isfinite(one) and one > 0 for one in std),
    }
    return next((name for name, fine in sound.items() if not fine), None)
