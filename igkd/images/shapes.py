"""The image source `shapes`: the built-in drawn pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from igkd.base.choices import Split
from igkd.base.errors import UserError
from igkd.base.random_draws import default_test_mask
from igkd.images import drawn_shapes
from igkd.images.codec import encode_png
from igkd.images.source import ImageSource, Record, fingerprint_of


@dataclass(frozen=True)
class Shapes(ImageSource):
    """The built-in data set: drawn shapes, with masks."""

    train: int = 5000
    test: int = 1000
    seed: int = 0
    classes: tuple[str, ...] = drawn_shapes.CLASSES
    has_masks = True

    @classmethod
    def parse(cls, settings: str) -> "Shapes":
        try:
            given = {k: int(v) for k, v in (item.split("=") for item in settings.split(",") if item)}
            if not given.keys() <= {"train", "test", "seed"} or min(given.get("train", 1), given.get("test", 1)) < 0:
                raise ValueError
            return replace(cls(), **given)  # type: ignore[arg-type]
        except ValueError:
            raise UserError(f"'shapes:{settings}' is not understood; write for example shapes:train=5000,test=1000,seed=0") from None

    def __str__(self) -> str:
        return f"shapes:train={self.train},test={self.test},seed={self.seed}"

    def labels(self, split: Split) -> NDArray[np.int64]:
        return np.array([drawn_shapes.label(i) for i in range(getattr(self, split))], dtype=np.int64)

    def read(self, split: Split, ids: Sequence[int]) -> Iterator[Record]:
        for i in ids:
            pixels, mask = drawn_shapes.draw(self.seed, split, int(i))
            yield Record(int(i), drawn_shapes.label(int(i)), encode_png(pixels), f"{self} {split} {i}", mask)

    def fingerprint(self, split: Split) -> str:
        return fingerprint_of("shapes", drawn_shapes.VERSION, split, getattr(self, split), self.seed)


def _drawn(labels: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """Rows (int64, ascending) of a split, for a file that holds both splits."""
    return np.flatnonzero(default_test_mask(labels) == (split == "test"))
