"""The image source `folder:PATH`: picture files in one directory for each class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igkd.base.choices import Split
from igkd.base.errors import UserError
from igkd.base.storage import absolute
from igkd.base.storage_errors import explain
from igkd.images import folder_layout
from igkd.images.codec import MAX_BYTES
from igkd.images.source import ImageSource, Record, fingerprint_of


@dataclass(frozen=True)
class FolderImages(ImageSource):
    """Pictures in PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or in PATH/CLASS/*.png, a fifth of which become the test split."""

    path: str
    classes: tuple[str, ...]
    files: dict[str, tuple[tuple[str, int, int], ...]] = field(repr=False)
    """split -> (relative path, label, bytes) of every image, sorted. Unlabelled pictures, which have no split, are under ""."""
    notes: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, path: str) -> "FolderImages":
        root = Path(absolute(path))
        if not root.is_dir():
            raise UserError(f"folder:{path}: there is no such directory")
        try:
            found = folder_layout.scan(str(root))
        except OSError as error:
            raise UserError(f"{error.filename or f'folder:{path}'} cannot be read: {explain(error)}") from None
        return cls(str(root), found.classes, found.files, found.notes)

    def __str__(self) -> str:
        return f"folder:{self.path}"

    def _files(self, split: Split) -> tuple[tuple[str, int, int], ...]:
        if "" in self.files:
            return self.files[""]
        if split not in self.files:
            raise UserError(f"{self} has no '{split}' directory, only {', '.join(self.files)}")
        return self.files[split]

    def labels(self, split: Split) -> NDArray[np.int64]:
        return np.array([label for _, label, _ in self._files(split)], dtype=np.int64)

    def read(self, split: Split, ids: Sequence[int]) -> Iterator[Record]:
        files = self._files(split)
        for i in ids:
            name, label, _ = files[i]
            try:
                with (Path(self.path) / name).open("rb") as file:
                    data = file.read(MAX_BYTES + 1)  # one byte too many suffices for `decode` to refuse it
            except OSError as error:
                raise UserError(f"cannot read {self.path}/{name}: {explain(error)}") from None
            yield Record(int(i), label, data, name)

    def fingerprint(self, split: Split) -> str:
        return fingerprint_of("folder", self.classes, self._files(split))
