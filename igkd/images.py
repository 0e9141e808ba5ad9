"""Image sources: where pictures and labels come from, behind one small interface.

`open_images("cifar10" | "parquet:URI" | "folder:PATH" | "shapes[:train=N,test=N,seed=N]")` gives an `ImageSource`. An image's id is its
index in the split's own order. Sources are small picklable values: a worker reads just the ids it is asked for.
"""

import abc
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps

from igkd import shapes
from igkd.errors import UserError
from igkd.files import absolute, filesystem

Split = Literal["train", "test"]


class BadImage(ValueError):
    """An image that cannot be used; the message says why."""


@dataclass(frozen=True)
class Record:
    """One image as it was found."""

    image_id: int
    label: int
    image: bytes
    """Encoded, in any format PIL reads."""
    name: str
    """Where it is, for messages."""
    mask: NDArray[np.bool_] | None = None
    """bool (H, W): where the object is, if the source knows."""


class ImageSource(abc.ABC):
    """Labelled images in a fixed order, split into train and test."""

    classes: tuple[str, ...]
    has_masks = False
    """Whether records come with a mask."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """The `--images` argument that opens this source from anywhere: local paths are absolute."""

    @abc.abstractmethod
    def labels(self, split: Split) -> NDArray[np.int64]:
        """int64 (N,): the label of every image, without reading a picture; raises UserError for a split that is not there."""

    @abc.abstractmethod
    def read(self, split: Split, ids: Sequence[int]) -> Iterator[Record]:
        """The images of these ids, in this order."""

    @abc.abstractmethod
    def fingerprint(self, split: Split) -> str:
        """Changes when the images do; found without reading the pictures."""

    def checked_labels(self, split: Split) -> NDArray[np.int64]:
        """`labels`, none of them outside the classes and not none at all."""
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


def open_images(spec: str) -> ImageSource:
    """Open a source by its `--images` argument.

    Raises:
        UserError: the argument is malformed or nothing is there.
    """
    kind, _, rest = spec.partition(":")
    if kind == "cifar10" and not rest:
        return Cifar10()
    if kind == "shapes":
        return Shapes.parse(rest)
    if kind == "parquet" and rest:
        return ParquetImages.open(rest)
    if kind == "folder" and rest:
        return FolderImages.open(rest)
    raise UserError(f"'{spec}' names no images; use cifar10, shapes, parquet:URI or folder:PATH")


def decode(image: bytes, shape: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode to uint8 (H, W, 3) RGB.

    Args:
        image: encoded picture.
        shape: (H, W) to scale and centre-crop to; None keeps the picture's own.

    Raises:
        BadImage: it does not decode.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "not a picture in a format PIL reads" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadImage(f"does not decode ({reason})") from None
    if shape is not None and (picture.height, picture.width) != shape:
        picture = ImageOps.fit(picture, (shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 (H, W, 3) to PNG bytes, lossless and deterministic."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def pixel_hash(pixels: NDArray[np.uint8]) -> bytes:
    """16 bytes (BLAKE2b) over shape and decoded pixels: the identity of a picture whatever its encoding."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    return digest.digest()


def _fingerprint(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Shapes(ImageSource):
    """The built-in data set: drawn shapes, with masks."""

    train: int = 5000
    test: int = 1000
    seed: int = 0
    classes: tuple[str, ...] = shapes.CLASSES
    has_masks = True

    @classmethod
    def parse(cls, settings: str) -> "Shapes":
        try:
            given = {k: int(v) for k, v in (item.split("=") for item in settings.split(",") if item)}
            if min(given.get("train", 1), given.get("test", 1)) < 0:
                raise ValueError
            return cls(**given)
        except (ValueError, TypeError):
            raise UserError(f"'shapes:{settings}' is not understood; write for example shapes:train=5000,test=1000,seed=0") from None

    def __str__(self) -> str:
        return f"shapes:train={self.train},test={self.test},seed={self.seed}"

    def labels(self, split: Split) -> NDArray[np.int64]:
        return np.array([shapes.label(i) for i in range(getattr(self, split))], dtype=np.int64)

    def read(self, split: Split, ids: Sequence[int]) -> Iterator[Record]:
        for i in ids:
            pixels, mask = shapes.draw(self.seed, split, int(i))
            yield Record(int(i), shapes.label(int(i)), encode_png(pixels), f"{self} {split} {i}", mask)

    def fingerprint(self, split: Split) -> str:
        return _fingerprint("shapes", shapes.VERSION, split, getattr(self, split), self.seed)


@dataclass(frozen=True)
class Cifar10(ImageSource):
    """CIFAR-10 as torchvision downloads it, into $IGKD_CACHE (by default ~/.cache/igkd)."""

    classes: tuple[str, ...] = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __str__(self) -> str:
        return "cifar10"

    def _load(self, split: Split) -> Any:
        from torchvision.datasets import CIFAR10

        root = Path(os.environ.get("IGKD_CACHE", "~/.cache/igkd")).expanduser()
        try:
            return CIFAR10(str(root), train=split == "train", download=not (root / "cifar-10-batches-py").is_dir())
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 could not be downloaded to {root} ({type(error).__name__}: {error}); without a network, use a local copy with "
                "--images parquet:DIR (files train-*.parquet and test-*.parquet in Hugging Face layout), "
                f"or unpack cifar-10-python.tar.gz into {root}"
            ) from None

    def labels(self, split: Split) -> NDArray[np.int64]:
        return np.asarray(self._load(split).targets, dtype=np.int64)

    def read(self, split: Split, ids: Sequence[int]) -> Iterator[Record]:
        data = self._load(split)
        for i in ids:
            yield Record(int(i), int(data.targets[i]), encode_png(data.data[i]), f"cifar10 {split} {i}")

    def fingerprint(self, split: Split) -> str:
        return _fingerprint("cifar10", split)


@dataclass(frozen=True)
class FolderImages(ImageSource):
    """A directory a class: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png for the split asked for."""

    path: str
    classes: tuple[str, ...]
    files: dict[str, tuple[tuple[str, int, int], ...]] = field(repr=False)
    """split ("" if there is but one) -> (relative path, label, bytes) of every image, sorted."""

    @classmethod
    def open(cls, path: str) -> "FolderImages":
        root = Path(path).expanduser()
        if not root.is_dir():
            raise UserError(f"folder:{path}: there is no such directory")
        splits = [name for name in get_args(Split) if (root / name).is_dir()] or [""]
        classes = tuple(sorted({d.name for s in splits for d in (root / s).iterdir() if d.is_dir() and not d.name.startswith(".")}))
        if not classes:
            raise UserError(f"folder:{path} holds no class directories; expected {path}/CLASS/*.png or {path}/train/CLASS/*.png")
        files = {}
        for split in splits:
            found = sorted(
                p for c in classes for p in (root / split / c).rglob("*") if p.is_file() and not p.name.startswith(".")
            )
            files[split] = tuple(
                (str(p.relative_to(root)), classes.index(p.relative_to(root / split).parts[0]), p.stat().st_size) for p in found
            )
        return cls(str(root.resolve()), classes, files)

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
                data = (Path(self.path) / name).read_bytes()
            except OSError as error:
                raise UserError(f"cannot read {self.path}/{name}: {error.strerror}") from None
            yield Record(int(i), label, data, name)

    def fingerprint(self, split: Split) -> str:
        return _fingerprint("folder", self.classes, self._files(split))


@dataclass(frozen=True)
class ParquetImages(ImageSource):
    """Parquet files in the Hugging Face layout: an image column of struct{bytes, path} and an integer label column.

    URI is a directory (local or s3://) of SPLIT-*.parquet files, there or under data/, or one Parquet file that serves as either split.
    """

    uri: str
    classes: tuple[str, ...]
    image_column: str
    label_column: str
    files: dict[str, tuple[tuple[str, int], ...]] = field(repr=False)
    """split ("" if there is but one file) -> (path, rows) of its files, sorted by name."""

    @classmethod
    def open(cls, uri: str) -> "ParquetImages":
        uri = absolute(uri)
        fs, root = filesystem(uri)
        try:
            if not fs.exists(root):
                raise UserError(f"parquet:{uri}: nothing is there")
            found = sorted(p for d in (root, f"{root}/data") if fs.isdir(d) for p in fs.ls(d, detail=False) if p.endswith(".parquet"))
            by_split = {s: [p for p in found if p.rsplit("/", 1)[-1].startswith(s)] for s in get_args(Split)}
            by_split = {s: paths for s, paths in by_split.items() if paths}
            if not fs.isdir(root):
                by_split = {"": [root]}
            elif not by_split:
                raise UserError(f"parquet:{uri} holds no train-*.parquet or test-*.parquet, there or under data/")
            footers = {s: [(p, _footer(fs, p)) for p in paths] for s, paths in by_split.items()}
        except (OSError, PermissionError) as error:
            raise UserError(f"parquet:{uri} cannot be read: {error}") from None
        schema = next(iter(footers.values()))[0][1].schema.to_arrow_schema()
        image, label, classes = _huggingface_columns(uri, schema)
        files = {s: tuple((p, f.num_rows) for p, f in group) for s, group in footers.items()}
        source = cls(uri, classes or (), image, label, files)
        if classes is None:  # no names in the metadata: the labels themselves, which must then be 0..K-1
            top = max(int(source.labels(s).max(initial=-1)) for s in ((*files,) if "" not in files else ("train",)))  # type: ignore[arg-type]
            source = cls(uri, tuple(map(str, range(top + 1))), image, label, files)
        return source

    def __str__(self) -> str:
        return f"parquet:{self.uri}"

    def _files(self, split: Split) -> tuple[tuple[str, int], ...]:
        if "" in self.files:
            return self.files[""]
        if split not in self.files:
            raise UserError(f"{self} has no {split}-*.parquet, only splits {', '.join(self.files)}")
        return self.files[split]

    def labels(self, split: Split) -> NDArray[np.int64]:
        fs, _ = filesystem(self.uri)
        columns = []
        for path, _rows in self._files(split):
            column = pq.read_table(path, columns=[self.label_column], filesystem=fs).column(0)
            if column.null_count:
                raise UserError(f"{path}: column '{self.label_column}' has {column.null_count} empty label(s)")
            columns.append(column.to_numpy().astype(np.int64))
        return np.concatenate(columns)

    def read(self, split: Split, ids: Sequence[int]) -> Iterator[Record]:
        files = self._files(split)
        starts = np.cumsum([0, *(rows for _, rows in files)])
        fs, _ = filesystem(self.uri)
        rows: dict[int, Record] = {}
        wanted = np.asarray(ids, dtype=np.int64)
        for number in np.unique(np.searchsorted(starts, wanted, side="right") - 1):
            path, start, stop = files[number][0], starts[number], starts[number + 1]
            here = np.sort(wanted[(wanted >= start) & (wanted < stop)]) - start
            for row, image, label in _rows(fs, path, here, (self.image_column, self.label_column)):
                i = int(start) + row
                data = (image or {}).get("bytes") or b""
                rows[i] = Record(i, int(label), data, f"{(image or {}).get('path') or path.rsplit('/', 1)[-1]} row {row}")
        for i in ids:
            yield rows[int(i)]

    def fingerprint(self, split: Split) -> str:
        fs, _ = filesystem(self.uri)
        files = [(p.rsplit("/", 1)[-1], rows, fs.size(p)) for p, rows in self._files(split)]
        return _fingerprint("parquet", self.classes, files)


def _footer(fs: fsspec.AbstractFileSystem, path: str) -> pq.FileMetaData:
    try:
        with fs.open(path, "rb") as file:
            return pq.ParquetFile(file).metadata
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {error}") from None


def _rows(
    fs: fsspec.AbstractFileSystem, path: str, rows: NDArray[np.int64], columns: tuple[str, str]
) -> Iterator[tuple[int, dict[str, Any] | None, int]]:
    """(row, image, label) of the given sorted rows of one file, reading only the row groups that hold them."""
    with fs.open(path, "rb") as opened:
        file = pq.ParquetFile(opened)
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            here = rows[(rows >= start) & (rows < stop)]
            if len(here):
                table = file.read_row_group(group, columns=list(columns)).take(here - start)
                yield from zip(here.tolist(), table[columns[0]].to_pylist(), table[columns[1]].to_pylist(), strict=True)
            start = stop


def _huggingface_columns(uri: str, schema: pa.Schema) -> tuple[str, str, tuple[str, ...] | None]:
    """Image column, label column and class names (None if the file does not say) of a Hugging Face Parquet schema."""
    images = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    labels = [f.name for f in schema if pa.types.is_integer(f.type)]
    if not images or not labels:
        raise UserError(
            f"parquet:{uri} is not in the Hugging Face layout: it needs a column of struct{{bytes, path}} and an integer label column, "
            f"it has {', '.join(f'{f.name}: {f.type}' for f in schema)}"
        )
    label = "label" if "label" in labels else labels[0]
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return images[0], label, tuple(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return images[0], label, None
