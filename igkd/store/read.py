"""Reading a finished store."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from igkd.base.errors import UserError
from igkd.base.parquet_limits import check_group, check_repeats
from igkd.base.schema import fits
from igkd.base.storage import filesystem, list_names, open_ranges, parse_json, read_file
from igkd.base.storage_errors import STORAGE_ERRORS, explain, is_damage
from igkd.images.codec import BadImage, decode, pixel_hash
from igkd.images.samples import Samples, concatenate
from igkd.store.plan import VERSION, Layer, Plan, ViewsPlan
from igkd.store.signals import SIGNALS, columns_of

L = TypeVar("L", bound=Layer)


@dataclass(frozen=True)
class Store:
    """A finished store, opened for reading."""

    uri: str
    plan: Plan
    manifest: dict[str, Any]

    @classmethod
    def open(cls, uri: str) -> "Store":
        """Read the manifest.

        Raises:
            UserError: there is no store, it is unfinished, or it is of another version.
        """
        plan, manifest = read_manifest(uri, Plan)
        return cls(uri, plan, manifest)

    @cached_property
    def views(self) -> ViewsPlan | None:
        """The plan of the store's views; None if it has none, or if they are unfinished.

        Raises:
            UserError: the views are damaged, or belong to another store.
        """
        return None if self._views is None else self._views[0]

    @cached_property
    def _views(self) -> tuple[ViewsPlan, dict[str, Any]] | None:
        """Plan and manifest of the views; None if there are none, or if they are unfinished."""
        fs, root = filesystem(self.uri)
        if ViewsPlan.manifest_name not in list_names(fs, root):
            return None
        views, manifest = read_manifest(self.uri, ViewsPlan)
        if views.store != self.plan.identity:
            raise UserError(
                f"the views in {self.uri} are of another store or teacher; delete its {ViewsPlan.kind}-* files and make them anew"
            )
        return views, manifest

    def views_fingerprint(self) -> str | None:
        """sha256 of the views' manifest; None without views."""
        return None if self._views is None else hashlib.sha256(json.dumps(self._views[1], sort_keys=True).encode()).hexdigest()

    def fingerprint(self) -> str:
        """sha256 of the manifest. It changes with any part, since the manifest holds the parts' hashes."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def tables(self, columns: Sequence[str] | None = None, parts: Iterable[int] | None = None, views: bool = False) -> Iterator[pa.Table]:
        """The parts' rows, read one part at a time.

        Args:
            columns: read only these columns and check the checksums of their pages; None reads all and checks the part's sha256.
            parts: read only these parts.
            views: read the views, which the store must have, instead of the store itself.

        Raises:
            UserError: a part is missing or damaged.
        """
        fs, root = filesystem(self.uri)
        plan: Layer = self.plan
        files = self.manifest["files"]
        if views:
            assert self._views is not None
            plan, files = self._views[0], self._views[1]["files"]
        for file in files if parts is None else [files[part] for part in parts]:
            path = f"{root}/{file['name']}"
            try:
                if columns is None:
                    data = read_file(fs, path)
                    if hashlib.sha256(data).hexdigest() != file["sha256"]:
                        raise ValueError("its sha256 is not the manifest's")
                    table = part_table(data, plan)
                else:
                    with open_ranges(fs, path) as opened:
                        table = _sound(pq.ParquetFile(opened, page_checksum_verification=True), plan, columns).read(
                            list(columns), use_threads=False
                        )
                if len(table) != file["rows"]:
                    raise ValueError(f"{len(table)} rows instead of {file['rows']}")
            except FileNotFoundError:
                raise UserError(f"{path} is missing; run the same jobs.precompute command again") from None
            except (*STORAGE_ERRORS, ValueError, TypeError, pa.ArrowException) as error:
                if not is_damage(error):
                    raise UserError(f"{path} cannot be read: {explain(error)}") from None
                raise UserError(f"{path} is damaged ({_first_line(error)}); see `igkd store verify {self.uri}`") from None
            yield table

    def column(self, name: str) -> NDArray[Any]:
        """One column of all rows, in the store's order: (rows, ...)."""
        return np.concatenate([to_numpy(table.column(name)) for table in self.tables([name])])

    def samples(self, parts: Iterable[int] | None = None, views: bool = False) -> tuple[Samples, NDArray[np.bool_]]:
        """Rows decoded in memory, and bool (N,), True for validation images.

        Args:
            parts: read only these parts.
            views: also read the views' logits, which the store must have.

        Raises:
            UserError: a part is damaged, or the hash of a picture's pixels differs from the one stored with its map.
        """
        found, validation = [], []
        parts = range(self.plan.parts) if parts is None else list(parts)
        beside = self.tables(parts=parts, views=True) if views else repeat(None)
        for table, more in zip(self.tables(parts=parts), beside, strict=False):
            samples = self._decoded(table)
            if more is not None:
                if not np.array_equal(to_numpy(more.column("image_id")), samples.ids):
                    raise UserError(f"the views in {self.uri} are of other images than its rows; see `igkd store verify {self.uri}`")
                samples = samples.with_signals(**self._of_views(more))
            found.append(samples)
            validation.append(to_numpy(table.column("validation")))
        return concatenate(found), np.concatenate(validation)

    def _of_views(self, table: pa.Table) -> dict[str, torch.Tensor]:
        """The views' columns of one part, as signals."""
        found = {name: to_numpy(table.column(name)) for name in table.column_names if name != "image_id"}
        if "view_classes" in found and out_of_range(found["view_classes"], len(self.plan.classes)):
            raise UserError(f"the views in {self.uri} name classes that the teacher has not; see `igkd store verify {self.uri}`")
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _decoded(self, table: pa.Table) -> Samples:
        """Decode the rows of one part."""
        pixels = np.empty((len(table), *self.plan.image_shape, 3), np.uint8)
        rows = zip(*(table.column(c).to_pylist() for c in ("image_id", "image", "image_sha")), strict=True)
        for row, (i, image, sha) in enumerate(rows):
            try:
                picture = decode(image, self.plan.image_shape if self.plan.resize else None, self.plan.scaling)
            except BadImage as error:
                raise UserError(f"{self.uri}: image {i} {error}; see `igkd store verify {self.uri}`") from None
            if pixel_hash(picture) != sha or picture.shape != pixels.shape[1:]:
                raise UserError(f"{self.uri}: image {i} is not the one its map was made from (image_sha differs)")
            pixels[row] = picture

        signals = {
            name: torch.from_numpy(to_numpy(table.column(name)).astype(np.uint8 if dtype == "uint8" else np.float32))
            for name, (_, dtype) in columns_of(self.plan).items()
            if SIGNALS[name].for_students and name in table.column_names
        }
        return Samples(
            to_numpy(table.column("image_id")),
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(to_numpy(table.column("label"))),
            signals,
        )


def out_of_range(classes: NDArray[Any], count: int) -> bool:
    """Whether some of these numbers of classes are none of `count` classes."""
    return bool(((classes < 0) | (classes >= count)).any())


def to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column as an array (rows, ...); a writable copy."""
    combined = column.combine_chunks()
    if isinstance(column.type, pa.FixedShapeTensorType):
        return np.array(combined.to_numpy_ndarray())
    return np.array(combined.to_numpy(zero_copy_only=False))


def read_manifest(uri: str, layer: type[L]) -> tuple[L, dict[str, Any]]:
    """Read the manifest of a store or of another layer; gives the plan in it and the whole manifest.

    Raises:
        UserError: there is no manifest, it is damaged, or it has another version.
    """
    fs, root = filesystem(uri)
    try:
        manifest = parse_json(read_file(fs, f"{root}/{layer.manifest_name}"))
        given = manifest["plan"]
        if given["version"] != VERSION:
            raise UserError(f"{uri} has store version {given['version']}, this program reads version {VERSION}; compute it anew")
        plan = layer.from_json(given)
        if len(manifest["files"]) != plan.parts or [file["name"] for file in manifest["files"]] != [
            plan.part_name(part) for part in range(plan.parts)
        ]:
            raise ValueError(f"it does not list the {plan.parts} parts of its plan")
        if not all(fits(file, dict[str, Any]) and fits([file["rows"], file["bytes"]], list[int]) and fits(file["sha256"], str)
                   for file in manifest["files"]):  # fmt: skip
            raise ValueError("it does not say how many rows and bytes each part has, and their hash")
        if not sum(file["rows"] for file in manifest["files"]) == manifest["rows"] == plan.rows - len(manifest["skipped"]):
            raise ValueError("its numbers of rows do not add up")
        if layer is Plan and (type(manifest["zero_maps"]) is not int or not 0 <= manifest["zero_maps"] <= manifest["rows"]):
            raise ValueError("its number of all-zero maps is impossible")
    except FileNotFoundError:
        raise UserError(_why_no_manifest(uri)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{uri}/{layer.manifest_name} is damaged or not ours ({error!r}); run the same jobs.precompute command again"
        ) from None
    return plan, manifest


def count_zero(maps: NDArray[Any]) -> int:
    """Number of maps, of n (n, H, W), that are zero everywhere."""
    return int((~maps.any(axis=(1, 2))).sum())


def zero_maps(manifest: Mapping[str, Any]) -> str:
    """A sentence that says how many maps of a store are zero everywhere; "" if none is."""
    count, plan = manifest["zero_maps"], manifest["plan"]
    if not count:
        return ""
    rounded = ", or so little that float16 rounds it to 0 (--precision float32 keeps it)" if plan["precision"] == "float16" else ""
    return f"{count:,} of {manifest['rows']:,} maps are all zero: nothing in these images changes their class's logit{rounded}"


def part_table(data: bytes, plan: Layer) -> pa.Table:
    """The rows of a part, from the bytes of its file.

    Raises:
        ValueError: the file is not a part of this plan; the message says why.
    """
    try:
        file = _sound(pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True), plan)
        if "image" in file.schema_arrow.names:
            pictures = pq.ParquetFile(pa.BufferReader(data), read_dictionary=["image"])
            for group in range(pictures.num_row_groups):
                check_repeats(pictures.read_row_group(group, ["image"], use_threads=False).column(0))
        table = file.read(use_threads=False)
        skipped_of(table)
    except _OtherColumns as error:
        raise ValueError(str(error)) from None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"it cannot be read: {_first_line(error)}") from None
    return table


class _OtherColumns(ValueError):
    pass


def _sound(file: pq.ParquetFile, plan: Layer, columns: Sequence[str] | None = None) -> pq.ParquetFile:
    """Return the file after checking that it has exactly the plan's columns and fits into memory.

    The check of the columns' types also excludes types of Ray that would unpickle data from the file.

    Raises:
        ValueError: the columns are others, or the file would not fit.
    """
    if not file.schema_arrow.equals(plan.schema()):
        raise _OtherColumns("it does not have the store's columns")
    if file.metadata.num_rows > plan.rows_per_file or file.num_row_groups > plan.rows_per_file:
        raise ValueError(
            f"it has {file.metadata.num_rows} rows in {file.num_row_groups} groups where {plan.rows_per_file} rows are the most"
        )
    for group in range(file.num_row_groups):
        check_group(file, group, columns)
    return file


def skipped_of(table: pa.Table) -> list[dict[str, Any]]:
    """The images that a part leaves out, each as {"image_id", "name", "reason"}."""
    return list(parse_json(table.schema.metadata[b"igkd.skipped"]))


def _why_no_manifest(uri: str) -> str:
    fs, root = filesystem(uri)
    if "plan.json" in list_names(fs, root):
        return f"{uri} is unfinished (it has no manifest.json); run the same jobs.precompute command again to finish it"
    return f"{uri} holds no attribution store; make one with `python -m jobs.precompute --store {uri}`"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
