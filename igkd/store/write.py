"""Writing a store: begin or resume it, write its parts in any order from anywhere, finish it."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from igkd.errors import UserError
from igkd.files import filesystem, list_names, read_file, write_file
from igkd.store.lease import LEASE
from igkd.store.plan import Plan, ids_hash, part_name
from igkd.store.read import part_table, skipped_of, to_numpy

Columns = Mapping[str, Any]
"""Rows of one part by column: numpy arrays, and bytes objects for `image` and `image_sha`."""


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
            real, tensor = field.type.value_type, field.type.storage_type
            flat = np.asarray(values, dtype=real.to_pandas_dtype()).reshape(len(values), *field.type.shape).reshape(-1)
            storage = pa.FixedSizeListArray.from_arrays(pa.array(flat, real), tensor.list_size)
            arrays.append(pa.ExtensionArray.from_storage(field.type, storage))
        else:
            arrays.append(pa.array(list(values) if field.name in ("image", "image_sha") else np.asarray(values), field.type))
    schema = plan.schema().with_metadata({"igkd.skipped": json.dumps(list(skipped))})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def start(uri: str, plan: Plan) -> list[int]:
    """Begin a store, or go on with one.

    Returns:
        the parts that are still to be computed.

    Raises:
        UserError: the place holds a store with another plan, or something else, or cannot be written.
    """
    fs, root = filesystem(uri)
    wanted = plan.to_json()
    present = list_names(fs, root)
    try:
        if "plan.json" in present:
            earlier = json.loads(read_file(fs, f"{root}/plan.json"))
            if not isinstance(earlier, dict):
                raise ValueError("plan.json holds no plan")
            # Where the images are is not what they are: that is in their fingerprint.
            differing = sorted(k for k in wanted.keys() | earlier.keys() if k != "images" and wanted.get(k) != earlier.get(k))
            if differing:
                changes = ", ".join(f"{k} was {earlier.get(k)!r} and is now {wanted.get(k)!r}" for k in differing)
                raise UserError(f"{uri} holds a store with other settings ({changes}); choose another --store or delete it")
        elif any(name != LEASE and not name.endswith(".tmp") for name in present):  # a killed job may leave its lease, or a .tmp
            raise UserError(f"{uri} exists and is not a store (it has no plan.json); choose another --store")
        else:
            write_file(fs, f"{root}/plan.json", (json.dumps(wanted, indent=1) + "\n").encode())
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{uri} cannot be used as a store: {error}; choose another --store") from None
    return [part for part in range(plan.parts) if part_name(part) not in present]


def write_part(uri: str, plan: Plan, part: int, columns: Columns, skipped: Sequence[Mapping[str, Any]]) -> None:
    """Write one part; it appears whole or not at all."""
    fs, root = filesystem(uri)
    write_file(fs, f"{root}/{part_name(part)}", part_bytes(plan, columns, skipped))


def is_finished(uri: str) -> bool:
    """Whether a store has its manifest.

    Raises:
        UserError: the place cannot be read.
    """
    fs, root = filesystem(uri)
    return "manifest.json" in list_names(fs, root)


def finish(uri: str, plan: Plan) -> dict[str, Any]:
    """Read every part back, check that together they hold every id once, and write the manifest: the store is complete from here on.

    Returns:
        the manifest.

    Raises:
        UserError: a part is missing or damaged.
    """
    fs, root = filesystem(uri)
    files: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    ids: list[int] = []
    for part in range(plan.parts):
        name = part_name(part)
        try:
            data = read_file(fs, f"{root}/{name}")
            table = part_table(data, plan)
        except FileNotFoundError:
            raise UserError(f"{root}/{name} is missing; run the same jobs.precompute command again to compute it") from None
        except ValueError as error:
            raise UserError(f"{root}/{name} is damaged ({error}); delete it and run the same jobs.precompute command again") from None
        here = skipped_of(table)
        ids += [*to_numpy(table.column("image_id")).tolist(), *(row["image_id"] for row in here)]
        skipped += here
        files.append({"name": name, "rows": len(table), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    if ids_hash(np.sort(np.array(ids, dtype=np.int64))) != plan.ids_sha256:
        rows = len(ids) - len(skipped)
        raise UserError(
            f"{uri}: its {rows} rows and {len(skipped)} skipped images are not the {plan.rows} images that were asked for; "
            "delete it and compute it anew"
        )
    manifest = {"plan": plan.to_json(), "rows": len(ids) - len(skipped), "skipped": skipped, "files": files}
    write_file(fs, f"{root}/manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest
