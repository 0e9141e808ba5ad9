"""How pictures are prepared for a network, as far as the network itself says so."""

from dataclasses import dataclass, fields, replace
from typing import Any

from igkd.base.errors import UserError
from igkd.images.codec import Interpolation


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
            UserError: size, mean or deviation is not known.
        """
        flags = {"image_shape": "--image-size N", "mean": "--mean R G B", "std": "--std R G B"}
        missing = [flag for field, flag in flags.items() if getattr(self, field) is None]
        if missing:
            raise UserError(
                f"{name} does not say how its pictures are prepared: `igkd import {name}` with {' '.join(missing)} (of pixels in [0, 1]) "
                "makes a checkpoint that every job takes"
            )
        return {field.name: getattr(self, field.name) for field in fields(self)}
