"""The image source `parquet:URI`: Parquet files as Hugging Face's datasets library writes them, local or on S3."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from igkd.base.choices import Split
from igkd.base.errors import UserError
from igkd.base.parquet_limits import TooLarge, check_group, check_repeats
from igkd.base.storage import filesystem, is_local, list_paths, open_ranges
from igkd.base.storage_errors import STORAGE_ERRORS, explain, is_damage
from igkd.images.parquet_columns import huggingface_columns
from igkd.images.parquet_splits import check_links, split_of_file, split_options, splits_of_files
from igkd.images.shapes import _drawn
from igkd.images.source import ImageSource, Record, fingerprint_of, some_names


@dataclass(frozen=True)
class ParquetImages(ImageSource):
    """Parquet files in the Hugging Face layout: an image column of struct{bytes, path} and an integer label column.

    URI is a directory (local or s3://) with SPLIT-*.parquet files in it or in its data/, or one Parquet file. One file is the split that
    its name says; if the name says none, a fifth of its rows are the test split and the others the train split. `,label=COLUMN` and
    `,image=COLUMN` after the URI choose between several columns of the right type.
    """

    uri: str
    classes: tuple[str, ...]
    image_column: str
    label_column: str
    files: dict[str, tuple[tuple[str, int], ...]] = field(repr=False)
    """split -> (path, number of rows) of its files, sorted by name. A single file that holds both splits is under ""."""
    options: str = ""
    """The user's choice of columns, as written after the URI; "" if none."""
    notes: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, text: str) -> "ParquetImages":
        uri, options, wanted = split_options(text)
        fs, root = filesystem(uri)
        listed = list_paths(fs, root)
        if listed is None:
            hint = "; after URI there may be ,label=COLUMN and ,image=COLUMN" if re.search(",[a-z_]+=", uri) else ""
            raise UserError(f"parquet:{uri}: nothing is there{hint}")
        if listed == [root]:
            by_split, notes = split_of_file(root)
        else:
            data = f"{root}/data"
            by_split, notes = splits_of_files(uri, listed, (list_paths(fs, data) or []) if data in listed else [])
            if is_local(fs):
                check_links(root, [path for paths in by_split.values() for path in paths])
        columns, files = {}, {}
        for split, paths in by_split.items():
            rows = []
            for path in paths:
                with _parquet(fs, path) as file:
                    columns[path] = huggingface_columns(path, file.schema_arrow, wanted)
                    rows.append((path, file.metadata.num_rows))
            files[split] = tuple(rows)
        first, (image, label, classes) = next(iter(columns.items()))
        for path, other in columns.items():
            if other != (image, label, classes):
                raise UserError(
                    f"{path} and {first} do not belong together: image column, label column and class names are {other[:2]}, "
                    f"{some_names(other[2])} here and {(image, label)}, {some_names(classes)} there"
                )
        notes = [f"parquet:{uri}: {note}" for note in notes]
        source = cls(uri, classes or (), image, label, files, options, tuple(notes))
        if classes is None:  # the file has no class names: name the classes by their labels, which must be 0..K-1
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
                column = file.read(columns=[self.label_column], use_threads=False).column(0)
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
        return fingerprint_of("parquet", self.classes, files, self.image_column, self.label_column, split if "" in self.files else None)


@contextlib.contextmanager
def _parquet(fs: fsspec.AbstractFileSystem, path: str, repeating: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; any error while it is open becomes a UserError.

    Args:
        repeating: columns to read dictionary-encoded, so that a repeated value is in memory once.
    """
    try:
        with open_ranges(fs, path) as opened:
            file = pq.ParquetFile(opened)
            encodings = _encodings(file.metadata, repeating)
            if "DELTA_BYTE_ARRAY" in encodings:  # a value shares its beginning with the one before it, so that a small file may be huge
                raise TooLarge("its pictures are delta-encoded (DELTA_BYTE_ARRAY)")
            if repeating and "DELTA_LENGTH_BYTE_ARRAY" not in encodings:  # by which every byte is in the file, and none can be repeated
                file = pq.ParquetFile(opened, metadata=file.metadata, read_dictionary=list(repeating))
            rows = file.metadata.num_rows
            if rows > 1_000_000 and rows > (size := fs.size(path)):  # labels alone could fill the memory
                raise TooLarge(f"it claims {rows:,} pictures in {size:,} bytes")
            yield file
    except TooLarge as error:
        raise UserError(f"{path} is refused: {error}; write it anew, in smaller row groups, if you know where it comes from") from None
    except (pa.ArrowException, ValueError, TypeError, *STORAGE_ERRORS) as error:  # ValueError, TypeError: from Ray's Arrow types
        if not is_damage(error):
            raise UserError(f"{path} cannot be read: {explain(error)}") from None
        raise UserError(f"{path} is not a readable Parquet file: {(str(error).splitlines() or [type(error).__name__])[0]}") from None


def _encodings(metadata: pq.FileMetaData, columns: Sequence[str]) -> set[str]:
    """How these columns of a file, given by their paths, are encoded."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    return {encoding for chunk in chunks if chunk.path_in_schema in columns for encoding in chunk.encodings}


def _rows(
    fs: fsspec.AbstractFileSystem, path: str, rows: NDArray[np.int64], columns: tuple[str, str]
) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(row, image, label) of the given rows (int64, ascending) of one file; reads only the row groups that hold them."""
    image, label = columns
    # Read no other field of the image than these two, known to be plain bytes and text: some of Ray's Arrow types unpickle what they read.
    fields = [f"{image}.bytes", f"{image}.path", label]
    with _parquet(fs, path, repeating=fields[:1]) as file:
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            here = rows[(rows >= start) & (rows < stop)]
            if len(here):
                check_group(file, group, fields)
                table = file.read_row_group(group, columns=fields, use_threads=False).take(here - start)
                if pa.types.is_dictionary((pictures := pc.struct_field(table[image], "bytes")).type):
                    check_repeats(pictures)
                yield from zip(here.tolist(), (one or {} for one in table[image].to_pylist()), table[label].to_pylist(), strict=True)
            start = stop
