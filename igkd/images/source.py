"""The interface of every image source."""

import abc
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igkd.base.choices import Split
from igkd.base.errors import UserError

NAMED = 4
"""Number of classes that a sentence names."""


@dataclass(frozen=True)
class Record:
    """One image as the source stores it, not decoded."""

    image_id: int
    label: int
    image: bytes
    """The encoded picture, in one of `codec.FORMATS`."""
    name: str
    """File name, row or the like, for messages."""
    mask: NDArray[np.bool_] | None = None
    """bool (H, W), True on the object; None if the source has no masks."""


class ImageSource(abc.ABC):
    """Labelled images in a fixed order, split into train and test."""

    classes: tuple[str, ...]
    has_masks = False
    """Whether records come with a mask."""
    notes: tuple[str, ...] = ()
    """Sentences for the user on what was decided about the source: which files are which split, and what was left out."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """The `--images` argument that opens this source from anywhere: local paths are absolute."""

    @abc.abstractmethod
    def labels(self, split: Split) -> NDArray[np.int64]:
        """int64 (N,), the label of every image, found without reading pictures; raises UserError if the source has no such split."""

    @abc.abstractmethod
    def read(self, split: Split, ids: Sequence[int]) -> Iterator[Record]:
        """The images with these ids, in this order."""

    @abc.abstractmethod
    def fingerprint(self, split: Split) -> str:
        """A hash of the classes and of the files' names, sizes and numbers of images, found without reading pictures."""

    def checked_labels(self, split: Split) -> NDArray[np.int64]:
        """`labels`, checked: raises UserError if there are none, or if one lies outside the classes."""
        labels = self.labels(split)
        if len(labels) == 0:
            raise UserError(f"{self} has no images in split '{split}'")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(wrong):
            raise UserError(
                f"{self}, split '{split}': image {wrong[0]} has label {labels[wrong[0]]}, outside the {len(self.classes)} classes "
                f"(0 to {len(self.classes) - 1}); {len(wrong)} image(s) are like that"
            )
        return labels


def without_pictures(labels: NDArray[np.int64], classes: Sequence[str]) -> str:
    """The classes that no picture is of, as a part of a sentence; "" if there are none."""
    missing = [name for name, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True) if count == 0]
    more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
    return f", none of them of {', '.join(missing[:NAMED])}{more}" if missing else ""


def some_names(classes: tuple[str, ...] | None) -> str:
    """Number of class names and the first three, for messages."""
    return "no names" if classes is None else f"{len(classes)} names from {', '.join(classes[:3])}"


def fingerprint_of(*parts: object) -> str:
    """Hash of the parts' repr: 32 hexadecimal digits."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
