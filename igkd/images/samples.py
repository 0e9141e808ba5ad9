"""Decoded images in memory, with the teacher's signals for them from the store."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igkd.base.choices import BadImages, Split
from igkd.base.errors import UserError
from igkd.images.codec import FILL, BadImage, Scaling, decode
from igkd.images.source import ImageSource, Record

SIZING = "--image-size N scales and crops all of them to one size"
"""Advice for images of several sizes, in the messages of programs that have this flag."""


@dataclass(frozen=True, eq=False)
class Samples:
    """N images; every field and every signal has N entries, and entry i of each belongs to the same image."""

    ids: NDArray[np.int64]
    pixels: Tensor
    """uint8 (N, 3, H, W)."""
    labels: Tensor
    """int64 (N,)."""
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    """The store's signals, each (N, ...), by their names in `igkd.store.signals`. "views" are the teacher's logits, float16: of every crop
    (N, 2p + 1, 2p + 1, 2, classes), or of K crops (N, K, classes). If only the largest are stored, "view_classes", int32, are their classes
    (`igkd.store.top_logits`)."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ig(self) -> Tensor | None:
        """float32 (N, H, W), the teacher's attribution maps; None if they were not read."""
        return self.signals.get("ig")

    @property
    def logits(self) -> Tensor | None:
        """float32 (N, classes), the teacher's logits of the whole images; None if they were not read."""
        return self.signals.get("logits")

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the images, in pixels."""
        return (self.pixels.shape[2], self.pixels.shape[3])

    def with_signals(self, **signals: Tensor) -> "Samples":
        """The same images, with these signals added or replaced."""
        return replace(self, signals={**self.signals, **signals})

    def select(self, rows: NDArray[np.int64] | NDArray[np.bool_], index: Tensor | None = None) -> "Samples":
        """The samples at these positions, or where a boolean mask is True.

        Args:
            rows: positions or mask (N,).
            index: the same as a tensor on the samples' device, if the caller has it already.
        """
        index = torch.from_numpy(rows) if index is None else index
        signals = {name: values[index] for name, values in self.signals.items()}
        return Samples(self.ids[rows], self.pixels[index], self.labels[index], signals)

    def to(self, device: torch.device) -> "Samples":
        """The samples with their tensors on a device; the same object if they are there already."""
        if self.pixels.device == device:
            return self
        signals = {name: values.to(device, non_blocking=True) for name, values in self.signals.items()}
        return Samples(self.ids, self.pixels.to(device, non_blocking=True), self.labels.to(device, non_blocking=True), signals)

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Every field and signal, as arrays whose first axis is the images."""
        tensors = {"pixels": self.pixels, "labels": self.labels, **self.signals}
        return {"ids": self.ids} | {name: values.numpy() for name, values in tensors.items()}

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[Any]]) -> "Samples":
        """The inverse of `columns`."""
        rest = {name: torch.from_numpy(np.array(values)) for name, values in columns.items() if name != "ids"}
        return cls(np.asarray(columns["ids"], np.int64), rest.pop("pixels"), rest.pop("labels"), rest)


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Join at least one Samples into one; all must have the same fields."""
    columns = [part.columns() for part in parts]
    return Samples.from_columns({name: np.concatenate([one[name] for one in columns]) for name in columns[0]})


def decode_all(
    records: Iterable[Record],
    shape: tuple[int, int] | None,
    resize: bool,
    on_bad: BadImages,
    skipped: Callable[[Record, str], None],
    sizing: str = SIZING,
    scaling: Scaling = FILL,
) -> Iterable[tuple[Record, NDArray[np.uint8]]]:
    """Decode records one by one; if no shape is given, the first image's shape is required of all.

    Args:
        records: from `ImageSource.read`.
        shape: (H, W) that every image must have; None takes the first image's.
        resize: scale and crop to `shape` instead of insisting on it.
        on_bad: "refuse" raises on an image that cannot be used, "skip" passes it to `skipped` and goes on.
        skipped: called with the record and the reason.
        sizing: for the message about an image of another size, what to do about it.
        scaling: how images are scaled and cropped.

    Raises:
        UserError: with "refuse", an image cannot be used; the message names it.
    """
    for record in records:
        try:
            pixels = decode(record.image, shape if resize else None, scaling)
            shape = shape or pixels.shape[:2]
            if pixels.shape[:2] != shape:
                raise BadImage(
                    f"is {pixels.shape[0]}x{pixels.shape[1]} pixels (height x width) where {shape[0]}x{shape[1]} is expected; {sizing}"
                )
        except BadImage as error:
            if on_bad == "refuse":
                raise UserError(f"image {record.image_id} ({record.name}) {error}; --bad-images skip leaves such images out") from None
            skipped(record, str(error))
        else:
            yield record, pixels


def first_image(source: ImageSource, split: Split, on_bad: BadImages) -> NDArray[np.uint8]:
    """The first image that decodes, uint8 (H, W, 3); it decides the size of all images.

    Raises:
        UserError: no image decodes, or, with "refuse", one before it does not.
    """
    count = len(source.checked_labels(split))
    for start in range(0, count, 100):
        records = source.read(split, range(start, min(count, start + 100)))
        for _, pixels in decode_all(records, None, False, on_bad, lambda record, why: None):
            return pixels
    raise UserError(f"{source}, split '{split}': none of {count} images decodes")


def load_samples(
    source: ImageSource,
    split: Split,
    ids: NDArray[np.int64],
    shape: tuple[int, int] | None = None,
    resize: bool = False,
    on_bad: BadImages = "refuse",
    sizing: str = SIZING,
    scaling: Scaling = FILL,
) -> tuple[Samples, list[tuple[Record, str]]]:
    """Read and decode images into memory.

    Returns:
        the samples, in the order of `ids`, and the images left out with their reasons.

    Raises:
        UserError: an image does not decode or has another size than the others, unless `on_bad` is "skip".
    """
    left_out: list[tuple[Record, str]] = []
    records = source.read(split, ids.tolist())
    kept = list(decode_all(records, shape, resize, on_bad, lambda record, why: left_out.append((record, why)), sizing, scaling))
    if not kept:
        raise UserError(
            f"{source}, split '{split}': none of {len(ids)} image(s) can be used" + (f"; the first {left_out[0][1]}" if left_out else "")
        )
    pixels = torch.from_numpy(np.stack([p for _, p in kept])).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([r.label for r, _ in kept], dtype=torch.int64)
    return Samples(np.array([r.image_id for r, _ in kept], dtype=np.int64), pixels, labels), left_out


def sentences(left_out: list[tuple[Record, str]]) -> tuple[str, ...]:
    """A sentence for each image that was left out."""
    return tuple(f"left out image {record.image_id} ({record.name}): it {reason}" for record, reason in left_out)
