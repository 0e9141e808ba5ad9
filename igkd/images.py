"""Image sources: where pictures and labels come from, behind one small interface.

`open_images("cifar10" | "parquet:URI" | "folder:PATH" | "shapes[:train=N,test=N,seed=N]")` gives an `ImageSource`. An image's id is its
index in the split's own order. Sources are small picklable values: a worker reads just the ids it is asked for.
"""

import abc
import contextlib
import hashlib
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from igkd import shapes
from igkd.errors import UserError
from igkd.files import STORAGE_ERRORS, absolute, explain, filesystem, is_damage, list_paths, open_ranges, parse_json
from igkd.parquet import TooLarge, check_group, check_repeats
from igkd.pictures import FILL, MAX_BYTES, BadImage, Scaling, decode, encode_png, pixel_hash

__all__ = ["FILL", "BadImage", "ImageSource", "Record", "Scaling", "Split", "decode", "encode_png", "open_images", "pixel_hash"]

Split = Literal["train", "test"]


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
        """Changes with the classes and with the files' names, sizes and numbers of images; found without reading the pictures."""

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


def loose_pictures(path: Path) -> "FolderImages":
    """Pictures of no class, each with the label -1: a picture's file, or all files of a directory in the order of their names.

    Raises:
        UserError: nothing is there, it holds no file, or a file in it is a link to somewhere else.
    """
    try:
        if path.is_file():
            return FolderImages(str(path.parent), (), {"": ((path.name, -1, path.stat().st_size),)})
        found = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        _refuse_links(found, path)
        if not found:
            raise UserError(f"{path} holds no pictures; a directory that has one for each class is named folder:{path}")
        return FolderImages(str(path), (), {"": tuple((p.name, -1, p.stat().st_size) for p in found)})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {explain(error)}") from None


def _refuse_links(found: Sequence[Path], root: Path) -> None:
    """A directory that someone made must not make pictures from elsewhere on this machine part of a store or page."""
    inside = root.resolve()
    for path in found:
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise UserError(f"{path} is a link to {path.resolve()}, outside of {root}; put a copy there (cp -rL) if it belongs to it")


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
            if not given.keys() <= {"train", "test", "seed"} or min(given.get("train", 1), given.get("test", 1)) < 0:
                raise ValueError
            return replace(cls(), **given)  # type: ignore[arg-type]
        except ValueError:
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

        root = Path(absolute(os.environ.get("IGKD_CACHE", "~/.cache/igkd")))
        patience = socket.getdefaulttimeout()
        try:
            with contextlib.suppress(RuntimeError):  # not there, or not whole
                return CIFAR10(str(root), train=split == "train")
            socket.setdefaulttimeout(60)  # torchvision sets none: a network that swallows packets would hang for ever
            return CIFAR10(str(root), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 could not be downloaded to {root} ({type(error).__name__}: {error}); without a network, use a local copy with "
                "--images parquet:DIR (files train-*.parquet and test-*.parquet in Hugging Face layout), "
                f"or unpack cifar-10-python.tar.gz into {root}"
            ) from None
        finally:
            socket.setdefaulttimeout(patience)

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
        root = Path(absolute(path))
        if not root.is_dir():
            raise UserError(f"folder:{path}: there is no such directory")
        try:
            return cls._scan(root)
        except OSError as error:
            raise UserError(f"folder:{path} cannot be read: {explain(error)}") from None

    @classmethod
    def _scan(cls, root: Path) -> "FolderImages":
        splits = [name for name in get_args(Split) if (root / name).is_dir()] or [""]
        classes = tuple(sorted({d.name for s in splits for d in (root / s).iterdir() if d.is_dir() and not d.name.startswith(".")}))
        if not classes:
            raise UserError(f"folder:{root} holds no class directories; expected {root}/CLASS/*.png or {root}/train/CLASS/*.png")
        files = {}
        for split in splits:
            found = sorted(p for c in classes for p in (root / split / c).rglob("*") if p.is_file() and not p.name.startswith("."))
            _refuse_links(found, root)
            files[split] = tuple(
                (str(p.relative_to(root)), classes.index(p.relative_to(root / split).parts[0]), p.stat().st_size) for p in found
            )
        return cls(str(root), classes, files)

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
                    data = file.read(MAX_BYTES + 1)  # more is no picture, whatever its size
            except OSError as error:
                raise UserError(f"cannot read {self.path}/{name}: {explain(error)}") from None
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
        listed = list_paths(fs, root)
        if listed is None:
            raise UserError(f"parquet:{uri}: nothing is there")
        if listed == [root]:
            by_split = {"": [root]}
        else:
            data = f"{root}/data"
            inside = [*listed, *((list_paths(fs, data) or ()) if data in listed else ())]
            found = sorted(path for path in inside if path.endswith(".parquet"))
            by_split = {s: [p for p in found if re.match(rf"{s}[-_.0-9]", p.rsplit("/", 1)[-1])] for s in get_args(Split)}
            by_split = {s: paths for s, paths in by_split.items() if paths}
            if not by_split:
                raise UserError(f"parquet:{uri} holds no train-*.parquet or test-*.parquet, there or under data/")
        columns, files = {}, {}
        for split, paths in by_split.items():
            rows = []
            for path in paths:
                with _parquet(fs, path) as file:
                    columns[path] = _huggingface_columns(path, file.schema_arrow)
                    rows.append((path, file.metadata.num_rows))
            files[split] = tuple(rows)
        first, (image, label, classes) = next(iter(columns.items()))
        for path, other in columns.items():
            if other != (image, label, classes):
                raise UserError(
                    f"{path} and {first} do not belong together: image column, label column and class names are {other[:2]}, "
                    f"{_some(other[2])} here and {(image, label)}, {_some(classes)} there"
                )
        source = cls(uri, classes or (), image, label, files)
        if classes is None:  # no names in the metadata: the labels themselves, which must then be 0..K-1
            top = max(int(source.labels(s).max(initial=0)) for s in get_args(Split) if s in files or "" in files)
            count = sum(n for group in files.values() for _, n in group)
            if top > count:
                raise UserError(f"parquet:{uri}: column '{label}' goes up to {top} for {count} images: these are no class numbers from 0")
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
            with _parquet(fs, path) as file:
                column = file.read(columns=[self.label_column]).column(0)
            if column.null_count:
                raise UserError(f"{path}: column '{self.label_column}' has {column.null_count} empty label(s); every image needs one")
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
                rows[i] = Record(i, int(label), image.get("bytes") or b"", f"{image.get('path') or path.rsplit('/', 1)[-1]} row {row}")
        for i in ids:
            yield rows[int(i)]

    def fingerprint(self, split: Split) -> str:
        fs, _ = filesystem(self.uri)
        try:
            files = [(p.rsplit("/", 1)[-1], rows, fs.size(p)) for p, rows in self._files(split)]
        except STORAGE_ERRORS as error:
            raise UserError(f"{self} cannot be read: {explain(error)}") from None
        return _fingerprint("parquet", self.classes, files)


@contextlib.contextmanager
def _parquet(fs: fsspec.AbstractFileSystem, path: str, repeating: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """An open Parquet file; whatever goes wrong with it is a UserError.

    Args:
        repeating: columns whose values are kept once in memory, however often the file repeats them.
    """
    try:
        with open_ranges(fs, path) as opened:
            file = pq.ParquetFile(opened, read_dictionary=list(repeating))
            if file.metadata.num_rows > max(1_000_000, opened.size):  # labels alone could be made to fill any memory
                raise TooLarge(f"it claims {file.metadata.num_rows:,} pictures in {opened.size:,} bytes")
            yield file
    except TooLarge as error:
        raise UserError(f"{path} is refused: {error}; write it anew, in smaller row groups, if you know where it comes from") from None
    except (pa.ArrowException, ValueError, TypeError, *STORAGE_ERRORS) as error:  # Ray's Arrow types raise what they like
        if not is_damage(error):
            raise UserError(f"{path} cannot be read: {explain(error)}") from None
        raise UserError(f"{path} is not a readable Parquet file: {(str(error).splitlines() or [type(error).__name__])[0]}") from None


def _some(classes: tuple[str, ...] | None) -> str:
    return "no names" if classes is None else f"{len(classes)} names from {', '.join(classes[:3])}"


def _rows(
    fs: fsspec.AbstractFileSystem, path: str, rows: NDArray[np.int64], columns: tuple[str, str]
) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(row, image, label) of the given sorted rows of one file, reading only the row groups that hold them."""
    image, label = columns
    # Of the image no other field than these, which were found to be plain bytes and text: Ray's Arrow types for anything else unpickle.
    fields = [f"{image}.bytes", f"{image}.path", label]
    with _parquet(fs, path, repeating=fields[:1]) as file:
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            here = rows[(rows >= start) & (rows < stop)]
            if len(here):
                check_group(file, group, fields)
                table = file.read_row_group(group, columns=fields).take(here - start)
                check_repeats(pc.struct_field(table[image], "bytes"))
                yield from zip(here.tolist(), (one or {} for one in table[image].to_pylist()), table[label].to_pylist(), strict=True)
            start = stop


def _is_image(kind: pa.DataType) -> bool:
    """Whether a column's type is struct{bytes, path}; with types of Ray's or anyone's own in it, it is not."""
    fields = [(field.name, str(field.type)) for field in kind] if pa.types.is_struct(kind) else []
    types = dict(fields)
    plain = types.get("bytes") in ("binary", "large_binary") and types.get("path", "string") in ("string", "large_string")
    return plain and len(types) == len(fields)


def _huggingface_columns(path: str, schema: pa.Schema) -> tuple[str, str, tuple[str, ...] | None]:
    """Image column, label column and class names (None if the file does not say) of a Hugging Face Parquet schema."""
    images = [f.name for f in schema if _is_image(f.type)]
    labels = [f.name for f in schema if pa.types.is_integer(f.type)]
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = {column: tuple(map(str, features[column]["names"])) for column in labels if "names" in features.get(column, ())}
    except (KeyError, TypeError, ValueError, AttributeError):
        names = {}
    if not images or not labels:
        raise UserError(
            f"{path} is not in the Hugging Face layout: it needs a column of struct{{bytes, path}} and an integer label column, "
            f"it has {', '.join(f'{f.name}: {f.type}' for f in schema) or 'no columns'}"
        )
    likely = [*(c for c in ("label", "labels") if c in labels), *names, *(labels if len(labels) == 1 else [])]
    if not likely:
        raise UserError(f"{path}: which of the integer columns {', '.join(labels)} is the label? name it 'label'")
    return images[0], likely[0], names.get(likely[0])
