"""Writing a store: start or resume it, write its parts (in any order, from any machine), finish it."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from igkd.base.choices import Engine
from igkd.base.errors import UserError
from igkd.base.storage import filesystem, is_local, list_names, parse_json, read_file, remove_file, write_file
from igkd.store.lease import LEASE
from igkd.store.plan import PLACES, Layer, Plan, ViewsPlan
from igkd.store.read import count_zero, part_table, read_manifest, skipped_of, to_numpy

Columns = Mapping[str, Any]
"""The rows of one part by column name: numpy arrays, for `image` and `image_sha` of bytes objects."""
Entry = dict[str, Any]
"""A part's entry in the manifest: "name", "rows", "bytes", "sha256", "zero_maps" (number of maps that are zero everywhere) and "skipped"
(the images left out)."""


class DamagedPart(UserError):
    """A part is missing or damaged and must be computed again."""


def part_bytes(plan: Layer, columns: Columns, skipped: Sequence[Mapping[str, Any]]) -> bytes:
    """One part as a Parquet file.

    Args:
        plan: gives the schema.
        columns: n rows by column name: int64 (n,) image_id and label, bool (n,) validation, float32 (n,) ig_delta, n bytes each of image
            and image_sha, arrays (n, ...) for the tensors; those of the plan's schema.
        skipped: images left out, as {"image_id", "name", "reason"}; kept in the file's metadata.

    Returns:
        the file's bytes, which depend only on the arguments and the version of pyarrow.
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


def start(uri: str, plan: Layer) -> list[int]:
    """Start a store or another layer of it, or resume it.

    If there is only another plan and no part yet, the plan is replaced.

    Returns:
        numbers of the parts that are still to be computed.

    Raises:
        UserError: the directory holds parts of another plan, or other files, or cannot be written to.
    """
    fs, root = filesystem(uri)
    wanted = plan.to_json()
    present = list_names(fs, root)
    try:
        if plan.plan_name in present:
            earlier = parse_json(read_file(fs, f"{root}/{plan.plan_name}"))
            if not isinstance(earlier, dict):
                raise ValueError(f"{plan.plan_name} holds no plan")
            differing = sorted(k for k in wanted.keys() | earlier.keys() if k not in PLACES and wanted.get(k) != earlier.get(k))
            if differing and isinstance(plan, Plan) and _only_planned(present, earlier):
                write_file(fs, f"{root}/{plan.plan_name}", (json.dumps(wanted, indent=1) + "\n").encode())
            elif differing:
                changes = ", ".join(f"{k} was {earlier.get(k)!r} and is now {wanted.get(k)!r}" for k in differing)
                if isinstance(plan, ViewsPlan):
                    raise UserError(
                        f"{uri} holds views of other settings ({changes}); leave --views out, or delete its {plan.kind}-* files"
                    )
                raise UserError(f"{uri} holds a store with other settings ({changes}); choose another --store or delete it")
        elif isinstance(plan, Plan) and any(map(_not_left_over, present)):
            raise UserError(f"{uri} exists and is not a store (it has no plan.json); choose another --store")
        else:
            write_file(fs, f"{root}/{plan.plan_name}", (json.dumps(wanted, indent=1) + "\n").encode())
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{uri} cannot be used as a store: {error}; choose another --store") from None
    return [part for part in range(plan.parts) if plan.part_name(part) not in present]


def _not_left_over(name: str) -> bool:
    """Whether a file is neither a lease nor a temporary file, which a killed job may leave behind."""
    return name != LEASE and not name.endswith(".tmp")


def _only_planned(present: Iterable[str], plan: Mapping[str, Any]) -> bool:
    """Whether a directory holds only a plan.json, and that one is ours: other programs use that name, too."""
    return plan.keys() >= {"ids_sha256", "rows_per_file", "engine"} and [*filter(_not_left_over, present)] == ["plan.json"]


def begun_with(uri: str) -> tuple[Engine, str] | None:
    """Engine and quadrature that a store's parts were computed with, finished or not; None if it has no parts yet."""
    fs, root = filesystem(uri)
    if not any(name.startswith("part-") for name in list_names(fs, root)):
        return None
    try:
        plan = parse_json(read_file(fs, f"{root}/plan.json"))
        return plan["engine"], plan["quadrature"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def views_plan_of(uri: str) -> ViewsPlan | None:
    """The plan of a store's views, finished or not; None if there is none.

    Raises:
        UserError: the plan is damaged.
    """
    fs, root = filesystem(uri)
    try:
        return ViewsPlan.from_json(parse_json(read_file(fs, f"{root}/{ViewsPlan.plan_name}")))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{uri}/{ViewsPlan.plan_name} is damaged ({error}); delete the store's {ViewsPlan.kind}-* files and make them anew"
        ) from None


def write_part(uri: str, plan: Layer, part: int, columns: Columns, skipped: Sequence[Mapping[str, Any]]) -> Entry:
    """Write one part, atomically.

    Returns:
        its entry for the manifest.
    """
    fs, root = filesystem(uri)
    data = part_bytes(plan, columns, skipped)
    write_file(fs, f"{root}/{plan.part_name(part)}", data)
    return _entry(plan, part, data, len(columns["image_id"]), columns.get("ig"), skipped)


def check_part(uri: str, plan: Layer, part: int, ids: NDArray[np.int64], sha256: str | None = None) -> Entry:
    """Read and check a part that was written earlier.

    Args:
        ids: int64 (n,), ascending: the ids planned for this part.
        sha256: the hash that a manifest has for the part, if there is a manifest.

    Returns:
        the entry that `write_part` gave for it.

    Raises:
        DamagedPart: the part is missing, has another hash, cannot be parsed or holds other images.
        UserError: the storage cannot be read; the part itself may be sound.
    """
    fs, root = filesystem(uri)
    try:
        data = read_file(fs, f"{root}/{plan.part_name(part)}")
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("its sha256 is not the manifest's")
        table = part_table(data, plan)
        skipped = skipped_of(table)
        found = np.concatenate([to_numpy(table.column("image_id")), np.array([row["image_id"] for row in skipped], np.int64)])
        if not np.array_equal(np.sort(found), ids):
            raise ValueError(f"its {len(table)} rows and {len(skipped)} skipped images are not the {len(ids)} images that were asked for")
    except FileNotFoundError:
        raise DamagedPart(f"{root}/{plan.part_name(part)} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedPart(f"{root}/{plan.part_name(part)} is damaged ({error})") from None
    maps = to_numpy(table.column("ig")) if "ig" in table.column_names else None
    return _entry(plan, part, data, len(table), maps, skipped)


def _entry(plan: Layer, part: int, data: bytes, rows: int, maps: NDArray[Any] | None, skipped: Sequence[Mapping[str, Any]]) -> Entry:
    entry = {"name": plan.part_name(part), "rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if isinstance(plan, Plan):
        entry["zero_maps"] = count_zero(np.asarray(maps, plan.precision))
    return entry | {"skipped": list(skipped)}


def finish(uri: str, plan: Layer, entries: Iterable[Entry]) -> dict[str, Any]:
    """Write the manifest, which makes the store or the layer complete.

    Args:
        entries: the entries of all parts, in any order, from `write_part` or `check_part`; no part is read again.

    Returns:
        the manifest.

    Raises:
        UserError: entries are missing, or their rows do not add up to the planned images.
    """
    fs, root = filesystem(uri)
    ordered = sorted(entries, key=lambda entry: (len(entry["name"]), entry["name"]))
    skipped = [image for entry in ordered for image in entry["skipped"]]
    rows = sum(entry["rows"] for entry in ordered)
    if [entry["name"] for entry in ordered] != [plan.part_name(part) for part in range(plan.parts)] or rows + len(skipped) != plan.rows:
        raise UserError(
            f"{uri}: {len(ordered)} parts with {rows} rows and {len(skipped)} skipped images are not the {plan.parts} parts of "
            f"{plan.rows} images that were asked for; run the same jobs.precompute command again"
        )
    files = [{key: entry[key] for key in ("name", "rows", "bytes", "sha256")} for entry in ordered]
    manifest: dict[str, Any] = {"plan": plan.to_json(), "rows": rows, "skipped": skipped, "files": files}
    if isinstance(plan, Plan):
        manifest["zero_maps"] = sum(entry.get("zero_maps", 0) for entry in ordered)
    write_file(fs, f"{root}/{plan.manifest_name}", (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def sound_manifest(uri: str, plan: Layer) -> dict[str, Any] | None:
    """The manifest of a layer, if there is one and it is valid and has this plan; else None."""
    try:
        found, manifest = read_manifest(uri, type(plan))
    except UserError:
        return None
    if isinstance(plan, Plan):
        plan = dataclasses.replace(plan, **{name: getattr(found, name) for name in PLACES})
    return manifest if found == plan else None


def discard(uri: str, plan: Layer, parts: Sequence[int]) -> None:
    """Delete existing parts; the manifest first, since a store that lacks a part is unfinished."""
    fs, root = filesystem(uri)
    for name in (plan.manifest_name, *map(plan.part_name, parts)):
        remove_file(fs, f"{root}/{name}")


def remove_unfinished_files(uri: str) -> None:
    """Remove temporary files that killed writers left on a local disk; on S3 they leave no visible files.

    Call this only while no other process writes the store: it would remove a file that is being written.
    """
    fs, root = filesystem(uri)
    if is_local(fs):
        for kind in ("part-", "plan.json.", "manifest.json.", "views-"):
            for path in Path(root).glob(f".{kind}*.tmp"):
                path.unlink(missing_ok=True)
