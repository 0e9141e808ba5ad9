"""The attribution store: one row holds all about one training image.

A directory, local or on S3, of Parquet files `part-NNNNN.parquet`, a `plan.json` that says what is being computed, and, once all is
there, a `manifest.json`: a store without one is unfinished. Every file is a function of the plan alone and appears whole or not at all,
so a part that exists is done, and whoever writes it twice writes the same.

    python -m igkd.store verify URI        every byte, id and hash; names what is wrong, exit status 1
    python -m igkd.store describe URI      counts, classes, completeness error, sizes
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from igkd.errors import UserError
from igkd.files import filesystem
from igkd.samples import Samples

VERSION = 1
Columns = Mapping[str, Any]
"""Rows of one part by column: numpy arrays, and a list of bytes for `image`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a store is made of and made from: the identity of every row in it."""

    images: str
    """The source as the user named it."""
    images_fingerprint: str
    split: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    resize: bool
    """Whether pictures were scaled and cropped to that shape."""
    bad_images: str
    """"refuse" or "skip"."""
    teacher: str
    """sha256 of the teacher's weights."""
    steps: int
    method: str
    engine: str
    target: str = "true label"
    baseline: str = "0 in normalised space"
    precision: str
    """dtype of maps and attention: float16 or float32."""
    attention_layer: int
    attention_shape: tuple[int, int]
    has_mask: bool
    ids_sha256: str
    """Hash of the int64 ids asked for, in order."""
    rows: int
    """Number of these ids."""
    rows_per_file: int
    version: int = VERSION

    @property
    def parts(self) -> int:
        return -(-self.rows // self.rows_per_file)

    def schema(self) -> pa.Schema:
        """Arrow schema of every part."""
        real = pa.type_for_alias(self.precision)
        fields = [
            pa.field("image_id", pa.int64(), nullable=False),
            pa.field("image_sha", pa.binary(16), nullable=False),
            pa.field("image", pa.binary(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("validation", pa.bool_(), nullable=False),
            pa.field("ig", pa.fixed_shape_tensor(real, self.image_shape), nullable=False),
            pa.field("ig_delta", pa.float32(), nullable=False),
            pa.field("logits", pa.fixed_shape_tensor(pa.float32(), (len(self.classes),)), nullable=False),
            pa.field("attention", pa.fixed_shape_tensor(real, self.attention_shape), nullable=False),
        ]
        if self.has_mask:
            fields.append(pa.field("mask", pa.fixed_shape_tensor(pa.uint8(), self.image_shape), nullable=False))
        return pa.schema(fields)


def ids_hash(ids: NDArray[np.int64]) -> str:
    """sha256 of int64 ids as little-endian bytes."""
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()


def part_name(part: int) -> str:
    return f"part-{part:05d}.parquet"


def part_bytes(plan: Plan, columns: Columns, skipped: Sequence[Mapping[str, Any]]) -> bytes:
    """One part as a Parquet file.

    Args:
        plan: its schema.
        columns: n rows by column name: int64 (n,) image_id and label, bool (n,) validation, float32 (n,) ig_delta, n bytes each of image
            and image_sha, arrays (n, ...) for the tensors.
        skipped: images left out, as {"image_id", "name", "reason"}; kept in the file's metadata.

    Returns:
        bytes that depend on nothing but the arguments and the pyarrow version.
    """
    arrays = []
    for field in plan.schema():
        values = columns[field.name]
        if isinstance(field.type, pa.FixedShapeTensorType):
            dtype = field.type.value_type.to_pandas_dtype()
            array = np.ascontiguousarray(np.asarray(values, dtype=dtype).reshape(-1, *field.type.shape))
            storage = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1), field.type.value_type), field.type.storage_type.list_size)
            arrays.append(pa.ExtensionArray.from_storage(field.type, storage))
        else:
            arrays.append(pa.array(list(values) if field.name in ("image", "image_sha") else np.asarray(values), field.type))
    schema = plan.schema().with_metadata({"igkd.skipped": json.dumps(list(skipped))})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def start(uri: str, plan: Plan) -> list[int]:
    """Begin a store, or go on with one.

    Returns:
        the parts that are still to be computed.

    Raises:
        UserError: the place holds a store with another plan, or something else, or cannot be written.
    """
    fs, root = filesystem(uri)
    wanted = json.loads(json.dumps(dataclasses.asdict(plan)))
    try:
        if fs.exists(f"{root}/plan.json"):
            earlier = json.loads(fs.cat_file(f"{root}/plan.json"))
            differing = sorted(k for k in wanted.keys() | earlier.keys() if wanted.get(k) != earlier.get(k))
            if differing:
                changes = ", ".join(f"{k} was {earlier.get(k)!r} and is now {wanted.get(k)!r}" for k in differing)
                raise UserError(f"{uri} holds a store with other settings ({changes}); choose another --store or delete it")
        elif fs.exists(root) and fs.ls(root):
            raise UserError(f"{uri} exists and is not a store (it has no plan.json); choose another --store")
        else:
            write_file(fs, f"{root}/plan.json", (json.dumps(wanted, indent=1) + "\n").encode())
        present = {path.rsplit("/", 1)[-1] for path in fs.ls(root, detail=False)}
    except (OSError, ValueError) as error:
        raise UserError(f"{uri} cannot be used as a store: {error}") from None
    return [part for part in range(plan.parts) if part_name(part) not in present]


def write_part(uri: str, plan: Plan, part: int, columns: Columns, skipped: Sequence[Mapping[str, Any]]) -> None:
    """Write one part; it appears whole or not at all."""
    fs, root = filesystem(uri)
    write_file(fs, f"{root}/{part_name(part)}", part_bytes(plan, columns, skipped))


def write_file(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file that appears whole or not at all: a local file is renamed into place, an object store's put is atomic by itself.

    Raises:
        UserError: no permission, no space, no connection.
    """
    from pathlib import Path

    from igkd.files import write_bytes

    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        write_bytes(Path(path), data)
        return
    try:
        fs.pipe_file(path, data)
    except (OSError, PermissionError) as error:
        raise UserError(f"cannot write {path}: {error}") from None


def finish(uri: str, plan: Plan) -> dict[str, Any]:
    """Read every part back, check it, and write the manifest: the store is complete from here on.

    Returns:
        the manifest.

    Raises:
        UserError: a part is missing or damaged.
    """
    fs, root = filesystem(uri)
    files, skipped, seen = [], [], 0
    for part in range(plan.parts):
        name = part_name(part)
        data = _read(fs, f"{root}/{name}")
        file = pq.ParquetFile(pa.BufferReader(data))
        skipped += json.loads(file.schema_arrow.metadata[b"igkd.skipped"])
        files.append({"name": name, "rows": file.metadata.num_rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        seen += file.metadata.num_rows
    if seen + len(skipped) != plan.rows:
        raise UserError(f"{uri}: {seen} rows and {len(skipped)} skipped images do not make the {plan.rows} that were asked for")
    manifest = {"plan": json.loads(json.dumps(dataclasses.asdict(plan))), "rows": seen, "skipped": skipped, "files": files}
    write_file(fs, f"{root}/manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def _read(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the same jobs.precompute command again to compute it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


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
        fs, root = filesystem(uri)
        try:
            if not fs.exists(f"{root}/manifest.json"):
                if fs.exists(f"{root}/plan.json"):
                    raise UserError(f"{uri} is unfinished (it has no manifest.json); run the same jobs.precompute command again to finish it")
                raise UserError(f"{uri} holds no attribution store; make one with `python -m jobs.precompute --store {uri}`")
            manifest = json.loads(fs.cat_file(f"{root}/manifest.json"))
            given = manifest["plan"]
            if given["version"] != VERSION:
                raise UserError(f"{uri} has store version {given['version']}, this program reads version {VERSION}; compute it anew")
            plan = Plan(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
        except OSError as error:
            raise UserError(f"{uri} cannot be read: {error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{uri}/manifest.json is damaged or not ours: {error}") from None
        return cls(uri, plan, manifest)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The parts' rows, of some columns or all, read one part at a time; a part that does not fit its hash raises UserError."""
        fs, root = filesystem(self.uri)
        for file in self.manifest["files"]:
            path = f"{root}/{file['name']}"
            try:
                with fs.open(path, "rb") as opened:
                    table = pq.read_table(opened, columns=None if columns is None else list(columns))
            except FileNotFoundError:
                raise UserError(f"{path} is missing; run the same jobs.precompute command again") from None
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{path} is damaged ({error}); see `python -m igkd.store verify {self.uri}`") from None
            if len(table) != file["rows"]:
                raise UserError(f"{path} has {len(table)} rows instead of {file['rows']}; see `python -m igkd.store verify {self.uri}`")
            yield table

    def column(self, name: str) -> NDArray[Any]:
        """One column over all rows, in the store's order; tensors as (rows, ...)."""
        return np.concatenate([to_numpy(table.column(name)) for table in self.tables([name])])

    def samples(self) -> tuple[Samples, NDArray[np.bool_]]:
        """All rows decoded in memory, and which of them are for validation, bool (N,).

        Raises:
            UserError: a picture is not the one that was attributed: its pixels do not have the row's hash.
        """
        from igkd.images import BadImage, decode, pixel_hash

        parts: dict[str, list[NDArray[Any]]] = {}
        for table in self.tables():
            pixels = []
            for i, image, sha in zip(*(table.column(c).to_pylist() for c in ("image_id", "image", "image_sha")), strict=True):
                try:
                    picture = decode(image, self.plan.image_shape if self.plan.resize else None)
                except BadImage as error:
                    raise UserError(f"{self.uri}: image {i} {error}; see `python -m igkd.store verify {self.uri}`") from None
                if pixel_hash(picture) != sha:
                    raise UserError(f"{self.uri}: image {i} is not the one its map was made from (image_sha differs)")
                pixels.append(picture)
            parts.setdefault("pixels", []).append(np.stack(pixels))
            for name in ("image_id", "label", "validation", "ig", "logits", "attention"):
                parts.setdefault(name, []).append(to_numpy(table.column(name)))
        whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        samples = Samples(
            whole["image_id"],
            torch.from_numpy(whole["pixels"]).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(whole["label"]),
            ig=torch.from_numpy(whole["ig"].astype(np.float32)),
            logits=torch.from_numpy(whole["logits"]),
            attention=torch.from_numpy(whole["attention"].astype(np.float32)),
        )
        return samples, whole["validation"]


def to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column as an array (rows, ...); a copy that may be written to."""
    combined = column.combine_chunks()
    if isinstance(column.type, pa.FixedShapeTensorType):
        return np.array(combined.to_numpy_ndarray())
    return np.array(combined.to_numpy(zero_copy_only=False))


def verify(uri: str, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Check every byte and every row of a store.

    Args:
        say: gets a line of progress after each part.

    Returns:
        what is wrong, a sentence each; empty for a sound store.
    """
    from igkd.images import BadImage, decode, pixel_hash

    store = Store.open(uri)
    fs, root = filesystem(uri)
    problems: list[str] = []
    found: dict[int, str] = {}
    names = {file["name"] for file in store.manifest["files"]}
    stray = sorted(p.rsplit("/", 1)[-1] for p in fs.ls(root, detail=False) if p.endswith(".parquet"))
    problems += [f"{name} is not in the manifest" for name in stray if name not in names]
    for file in store.manifest["files"]:
        name = file["name"]
        try:
            data = _read(fs, f"{root}/{name}")
        except UserError:
            problems.append(f"{name} is missing")
            continue
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            problems.append(f"{name} was changed: its sha256 is not the manifest's")
        try:
            table = pq.read_table(pa.BufferReader(data))
        except pa.ArrowException as error:
            problems.append(f"{name} cannot be read: {error}")
            continue
        if not table.schema.equals(store.plan.schema()):
            problems.append(f"{name} does not have the store's schema")
            continue
        if len(table) != file["rows"]:
            problems.append(f"{name} has {len(table)} rows instead of {file['rows']}")
        for row in table.select(["image_id", "image", "image_sha", "label"]).to_pylist():
            where = f"{name}, image {row['image_id']}"
            if row["image_id"] in found:
                problems.append(f"{where}: the same id is in {found[row['image_id']]}")
            found[row["image_id"]] = name
            if not 0 <= row["label"] < len(store.plan.classes):
                problems.append(f"{where}: label {row['label']} is outside the {len(store.plan.classes)} classes")
            try:
                picture = decode(row["image"], store.plan.image_shape if store.plan.resize else None)
                if pixel_hash(picture) != row["image_sha"]:
                    problems.append(f"{where}: the picture does not have the hash in image_sha")
                elif picture.shape[:2] != store.plan.image_shape:
                    problems.append(f"{where}: the picture is {picture.shape[0]}x{picture.shape[1]}")
            except BadImage as error:
                problems.append(f"{where}: {error}")
        for column in ("ig", "ig_delta", "logits", "attention"):
            bad = ~np.isfinite(to_numpy(table.column(column)).astype(np.float32)).reshape(len(table), -1).all(axis=1)
            problems += [f"{name}, image {i}: {column} is not finite" for i in to_numpy(table.column("image_id"))[bad]]
        say(f"{name}: {len(table)} rows")
    expected = np.sort(np.array([*found, *(s["image_id"] for s in store.manifest["skipped"])], dtype=np.int64))
    if not problems and ids_hash(expected) != store.plan.ids_sha256:
        problems.append("the ids in the store are not the ids that were asked for")
    return problems


def describe(uri: str) -> dict[str, Any]:
    """Figures of a store: counts, classes, quantiles of the completeness error, sizes. Reads the manifest and two small columns."""
    store = Store.open(uri)
    labels, delta = store.column("label"), np.abs(store.column("ig_delta"))
    validation = store.column("validation")
    size = sum(file["bytes"] for file in store.manifest["files"])
    counts = np.bincount(labels, minlength=len(store.plan.classes))
    return {
        "images": len(labels),
        "validation": int(validation.sum()),
        "skipped": len(store.manifest["skipped"]),
        "files": len(store.manifest["files"]),
        "bytes": size,
        "bytes_per_image": round(size / max(1, len(labels))),
        "source": store.plan.images,
        "split": store.plan.split,
        "image_shape": list(store.plan.image_shape),
        "classes": dict(zip(store.plan.classes, counts.tolist(), strict=True)),
        "teacher": store.plan.teacher[:16],
        "engine": store.plan.engine,
        "method": store.plan.method,
        "steps": store.plan.steps,
        "completeness_error": {f"p{q}": float(f"{v:.4g}") for q, v in zip((50, 90, 99, 100), np.percentile(delta, (50, 90, 99, 100)), strict=True)},
    }
