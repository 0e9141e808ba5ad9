"""Image sources: where pictures and labels come from, behind one small interface.

`open_images("cifar10" | "parquet:URI[,label=COLUMN][,image=COLUMN]" | "folder:PATH" | "shapes[:train=N,test=N,seed=N]")` gives an
`ImageSource`. An image's id is its index in the split's own order. Sources are small picklable values: a worker reads just the ids it is
asked for. `igkd.folders` says how a directory is understood.
"""

import abc
import contextlib
import hashlib
import os
import re
import socket
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from igkd import folders, shapes
from igkd.errors import UserError, printable
from igkd.files import STORAGE_ERRORS, absolute, explain, filesystem, is_damage, is_local, list_paths, open_ranges, parse_json
from igkd.parquet import TooLarge, check_group, check_repeats
from igkd.pictures import FILL, MAX_BYTES, BadImage, Scaling, decode, encode_png, pixel_hash
from igkd.randomness import default_test_mask

__all__ = ["FILL", "BadImage", "ImageSource", "Record", "Scaling", "Split", "decode", "encode_png", "open_images", "pixel_hash", "tell"]

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
    notes: tuple[str, ...] = ()
    """Sentences on what was decided about the source: which files are which split, and what was left out."""

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


def tell(source: ImageSource) -> None:
    """Print a source's notes on standard error, each once a process: for what a user starts, not for the workers of it."""
    for note in source.notes:
        if note not in _TOLD:
            _TOLD.add(note)
            print(printable(f"note: {' '.join(note.splitlines())}"), file=sys.stderr, flush=True)


_TOLD: set[str] = set()


def loose_pictures(path: Path) -> "FolderImages":
    """Pictures of no class, each with the label -1: a picture's file, or the pictures of a directory in the order of their names.

    Raises:
        UserError: nothing is there, it holds no picture, or a link in it is not allowed.
    """
    try:
        if path.is_file():
            return FolderImages(str(path.parent), (), {"": ((path.name, -1, path.stat().st_size),)})
        opened = folders.Opened(str(path))
        top = folders.Directory(opened)
        if not top.pictures:
            raise UserError(f"{path} holds no pictures; a directory that has one for each class is named folder:{path}")
        opened.left_out.update(f"{name}/" for name in top.directories)
        notes = tuple(f"{path}: {note}" for note in folders.left_out(opened))
        return FolderImages(str(path), (), {"": tuple((one.name, -1, one.bytes) for one in top.pictures)}, notes)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {explain(error)}") from None


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
    """A directory a class: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png, of which a fifth are the test split."""

    path: str
    classes: tuple[str, ...]
    files: dict[str, tuple[tuple[str, int, int], ...]] = field(repr=False)
    """split ("" for pictures of no class, whatever the split) -> (relative path, label, bytes) of every image, sorted."""
    notes: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, path: str) -> "FolderImages":
        root = Path(absolute(path))
        if not root.is_dir():
            raise UserError(f"folder:{path}: there is no such directory")
        try:
            found = folders.scan(str(root))
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
                    data = file.read(MAX_BYTES + 1)  # more is no picture, whatever its size
            except OSError as error:
                raise UserError(f"cannot read {self.path}/{name}: {explain(error)}") from None
            yield Record(int(i), label, data, name)

    def fingerprint(self, split: Split) -> str:
        return _fingerprint("folder", self.classes, self._files(split))


@dataclass(frozen=True)
class ParquetImages(ImageSource):
    """Parquet files in the Hugging Face layout: an image column of struct{bytes, path} and an integer label column.

    URI is a directory (local or s3://) of SPLIT-*.parquet files, there or under data/, or one Parquet file: a split, if its name says so,
    else both, a fifth of its rows being the test split. `,label=COLUMN` and `,image=COLUMN` after it choose where there are several.
    """

    uri: str
    classes: tuple[str, ...]
    image_column: str
    label_column: str
    files: dict[str, tuple[tuple[str, int], ...]] = field(repr=False)
    """split ("" for a file that is both) -> (path, rows) of its files, sorted by name."""
    options: str = ""
    """The columns that were asked for, as they are written behind URI."""
    notes: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, text: str) -> "ParquetImages":
        uri, options, wanted = _split_options(text)
        fs, root = filesystem(uri)
        listed = list_paths(fs, root)
        if listed is None:
            hint = "; after URI there may be ,label=COLUMN and ,image=COLUMN" if re.search(",[a-z_]+=", uri) else ""
            raise UserError(f"parquet:{uri}: nothing is there{hint}")
        if listed == [root]:
            by_split, notes = _split_of_file(root)
        else:
            data = f"{root}/data"
            by_split, notes = _splits_of_files(uri, listed, (list_paths(fs, data) or []) if data in listed else [])
            if is_local(fs):
                _check_links(root, [path for paths in by_split.values() for path in paths])
        columns, files = {}, {}
        for split, paths in by_split.items():
            rows = []
            for path in paths:
                with _parquet(fs, path) as file:
                    columns[path] = _huggingface_columns(path, file.schema_arrow, wanted)
                    rows.append((path, file.metadata.num_rows))
            files[split] = tuple(rows)
        first, (image, label, classes) = next(iter(columns.items()))
        for path, other in columns.items():
            if other != (image, label, classes):
                raise UserError(
                    f"{path} and {first} do not belong together: image column, label column and class names are {other[:2]}, "
                    f"{_some(other[2])} here and {(image, label)}, {_some(classes)} there"
                )
        notes = [f"parquet:{uri}: {note}" for note in notes]
        source = cls(uri, classes or (), image, label, files, options, tuple(notes))
        if classes is None:  # no names in the metadata: the labels themselves, which must then be 0..K-1
            top = max(int(source.labels(s).max(initial=0)) for s in get_args(Split) if s in files or "" in files)
            count = sum(n for group in files.values() for _, n in group)
            if top > count:
                raise UserError(f"parquet:{uri}: column '{label}' goes up to {top} for {count} images: these are no class numbers from 0")
            source = replace(source, classes=tuple(map(str, range(top + 1))))
        if "" in files:
            train, test = (len(source.labels(split)) for split in get_args(Split))
            drawn = (
                f"the file's name tells no split, so {test:,} of its {train + test:,} pictures, a fifth drawn by their place in it, are "
                "the test split and the others the train split; a name that begins with train- or test- would make it one of them"
            )
            source = replace(source, notes=(*notes, f"parquet:{uri}: {drawn}"))
        return source

    def __str__(self) -> str:
        return f"parquet:{self.uri}{self.options}"

    def _files(self, split: Split) -> tuple[tuple[str, int], ...]:
        if "" in self.files:
            return self.files[""]
        if split not in self.files:
            raise UserError(f"{self} has no {split}-*.parquet, only splits {', '.join(self.files)}")
        return self.files[split]

    def labels(self, split: Split) -> NDArray[np.int64]:
        labels = self._all_labels(split)
        return labels[_drawn(labels, split)] if "" in self.files else labels

    def _all_labels(self, split: Split) -> NDArray[np.int64]:
        """The label of every row of the split's files."""
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
        places = np.asarray(ids, dtype=np.int64)
        if "" in self.files:
            places = _drawn(self._all_labels(split), split)[places]
        rows: dict[int, tuple[int, dict[str, Any], str]] = {}
        for number in np.unique(np.searchsorted(starts, places, side="right") - 1):
            path, start, stop = files[number][0], starts[number], starts[number + 1]
            here = np.sort(places[(places >= start) & (places < stop)]) - start
            for row, image, label in _rows(fs, path, here, (self.image_column, self.label_column)):
                rows[int(start) + row] = (int(label), image, f"{image.get('path') or path.rsplit('/', 1)[-1]} row {row}")
        for i, place in zip(ids, places.tolist(), strict=True):
            label, image, name = rows[place]
            yield Record(int(i), label, image.get("bytes") or b"", name)

    def fingerprint(self, split: Split) -> str:
        fs, _ = filesystem(self.uri)
        try:
            files = [(p.rsplit("/", 1)[-1], rows, fs.size(p)) for p, rows in self._files(split)]
        except STORAGE_ERRORS as error:
            raise UserError(f"{self} cannot be read: {explain(error)}") from None
        return _fingerprint("parquet", self.classes, files, self.image_column, self.label_column, split if "" in self.files else None)


def _drawn(labels: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """The rows, int64, ascending, that are a split of a file that is both."""
    return np.flatnonzero(default_test_mask(labels) == (split == "test"))


def _split_options(text: str) -> tuple[str, str, dict[str, str]]:
    """URI, made absolute; the options behind it as they were written; and the columns that these name, by "label" and "image".

    Raises:
        UserError: an option is there twice, or names no column.
    """
    match = re.fullmatch(r"(.*?)((?:,(?:label|image)=[^,]*)*)", text, re.DOTALL)
    assert match is not None  # anything is a URI
    uri, options = match[1], match[2]
    given = [option.split("=", 1) for option in options.split(",")[1:]]
    if len(dict(given)) < len(given) or not all(column for _, column in given):
        raise UserError(f"'parquet:{text}' is not understood: write for example parquet:URI,label=COLUMN,image=COLUMN, each once")
    absolute(uri)  # raises where there is no such home directory
    # A link to a file is not followed: in the cache of Hugging Face only the link's name tells the split.
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri)), options, dict(given)


def _split_of_file(path: str) -> tuple[dict[str, list[str]], list[str]]:
    """Which split a single file is, that which its name tells, else "", both; and what to tell the user."""
    name = path.rsplit("/", 1)[-1]
    role = folders.resembled_role(_group(name))
    if role is None:
        return {"": [path]}, []
    split = "train" if role == "train" else "test"
    return {split: [path]}, [] if role == split else [f"the {split} split is {name}"]


def _group(name: str) -> str:
    """What files of one split have in common: train of train-00001-of-00003-0123456789abcdef.parquet."""
    return re.sub(r"([-_.]?\d+)*(-of-\d+)?(-[0-9a-f]{16})?(\.parquet)?$", "", name, flags=re.IGNORECASE)


def _splits_of_files(uri: str, beside: Sequence[str], data: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The files of each split, and what to tell the user.

    Args:
        beside: paths of what is in the directory.
        data: of what is in its directory data/.

    Raises:
        UserError: there are no files of splits, some are missing, or it is not clear which they are.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted([*beside, *data]):
        name = path.rsplit("/", 1)[-1]
        if path.lower().endswith(".parquet") and not name.startswith("."):
            groups.setdefault(_group(name), []).append(path)
    known = {group: role for group in groups if (role := folders.role_of(group))}
    if not known:
        seen = f"; it holds {folders.some(group + '*.parquet' for group in groups)}" if groups else ""
        raise UserError(f"parquet:{uri} holds no train-*.parquet or test-*.parquet, there or under data/{seen}")
    roles = {role: [group for group in known if known[group] == role] for role in known.values()}
    unclear = [group for group in groups if group not in known and folders.resembled_role(group)]
    unclear += [group for found in roles.values() if len(found) > 1 for group in found]
    if unclear:
        raise UserError(
            f"parquet:{uri} holds {folders.some(group + '*.parquet' for group in groups)}: it is not clear which are the train and which "
            "the test split; name them train-*.parquet and test-*.parquet, and move away what is neither"
        )
    for group in known:
        if len({path.rsplit("/", 1)[0] for path in groups[group]}) > 1:
            raise UserError(f"parquet:{uri} holds {group}*.parquet, and under data/ too; keep those of one place, or name data/ itself")
        _check_complete(uri, group, groups[group])
    chosen = {"train": roles["train"][0]} if "train" in roles else {}
    if "test" in roles or "validation" in roles:
        chosen["test"] = roles.get("test", roles.get("validation", []))[0]
    unused = [f"{group}*.parquet" for group in groups if group not in chosen.values()]
    notes = []
    if any(folders.role_of(group) != split for split, group in chosen.items()) or unused:
        told = ", ".join(f"the {split} split is {group}*.parquet" for split, group in chosen.items())
        notes.append(told + (f"; not used: {folders.some(unused)}" if unused else ""))
    return {split: groups[group] for split, group in chosen.items()}, notes


def _check_complete(uri: str, group: str, paths: Sequence[str]) -> None:
    """Refuse files of a split that say of how many they are, and are not as many."""
    numbered = [re.search(r"[-_.](\d+)-of-(\d+)", path.rsplit("/", 1)[-1]) for path in paths]
    found = [(int(match[1]), int(match[2])) for match in numbered if match]
    totals = {total for _, total in found}
    if found and (len(found) < len(paths) or len(totals) > 1 or len(found) != max(totals)):
        raise UserError(
            f"parquet:{uri} holds {len(paths)} files {group}*.parquet, which by their names are {' or '.join(map(str, sorted(totals)))}; "
            "get those that are missing, or move away those that do not belong there"
        )


def _check_links(root: str, paths: Sequence[str]) -> None:
    """The rule for links, as in a folder of pictures: none leads outside, and no file is there twice.

    In the cache of Hugging Face, all files are links from snapshots/ to blobs/ beside it: there, outside is what is outside of both.
    """
    inside = Path(os.path.realpath(root))
    for parent in inside.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            inside = parent.parent
    reached: dict[str, str] = {}
    for path in paths:
        target = os.path.realpath(path)
        if not os.path.exists(target):
            raise UserError(f"{path} is a link to {target}, where nothing is; remove it, or put there what it means")
        if not Path(target).is_relative_to(inside):
            raise UserError(f"{path} is a link to {target}, outside of {inside}; put a copy there (cp -L) if it belongs to it")
        first = reached.setdefault(target, path)
        if first != path:
            raise UserError(f"{path} and {first} are one file, since one is a link to the other; remove one of them")


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


def _huggingface_columns(path: str, schema: pa.Schema, wanted: dict[str, str]) -> tuple[str, str, tuple[str, ...] | None]:
    """Image column, label column and class names (None if the file does not say) of a Hugging Face Parquet schema.

    Args:
        wanted: the columns that the user named, by "label" and "image".

    Raises:
        UserError: there is no such column, or several may be meant.
    """
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
    image = _chosen(path, "image", images, images, wanted)
    label = _chosen(path, "label", labels, _likely_labels(schema, labels, names), wanted)
    return image, label, names.get(label)


def _likely_labels(schema: pa.Schema, labels: Sequence[str], names: Collection[str]) -> list[str]:
    """The columns that may be the label: just one where it is clear which.

    Args:
        labels: the integer columns.
        names: those of them that have names of classes.
    """
    alike = [f.name for f in schema if _words(f.name) & LABEL_WORDS and f.name not in names and not _is_image(f.type)]
    likely = [column for column in labels if column in names or column in alike]
    if len(likely) > 1 or (likely and (likely[0] in names or likely[0] in ("label", "labels"))):
        return likely
    others = [column for column in alike if column not in labels]  # such as a label that is a text
    if len(labels) == 1 and not others and (likely or not _words(labels[0]) & NO_LABEL_WORDS):
        return list(labels)
    return [*labels, *others] if len(labels) + len(others) > 1 else []


LABEL_WORDS = {"label", "labels", "class", "classes", "target", "targets", "category", "categories"}
"""Words in the name of a column of labels."""
NO_LABEL_WORDS = {"id", "ids", "idx", "index", "row", "number", "width", "height", "size", "year", "time", "timestamp", "date", "seed"}
"""Words in the name of a column of other integers."""


def _words(column: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", column)}


def _chosen(path: str, kind: str, possible: Sequence[str], likely: Sequence[str], wanted: dict[str, str]) -> str:
    """The column that the user named, or the only one that is likely.

    Args:
        possible: the columns of the right type.
        likely: those that may be meant.
    """
    told = "integer" if kind == "label" else "image"
    if kind in wanted:
        if wanted[kind] not in possible:
            raise UserError(f"{path} has no {told} column '{wanted[kind]}'; write ,{kind}=COLUMN with one of {', '.join(possible)}")
        return wanted[kind]
    if len(likely) == 1:
        return likely[0]
    columns = f"{told} columns" if set(likely) <= set(possible) else "columns"
    which = f"which of the {columns} {', '.join(likely)} is" if likely else f"is its only {told} column {possible[0]}"
    offered = next(column for column in (*likely, *possible) if column in possible)
    raise UserError(f"{path}: {which} the {kind}? say it behind the path, such as --images parquet:URI,{kind}={offered}")
