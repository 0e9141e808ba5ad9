"""Ways to damage a store."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from igkd.images.codec import encode_png, pixel_hash
from igkd.store import Store, part_bytes, part_name, to_numpy


def rewrite(directory: Path, part: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a part's rows and put the hash of the result into the manifest, so that only the rows can give it away."""
    path, manifest = directory / part_name(part), json.loads((directory / "manifest.json").read_bytes())
    table = pq.read_table(path)
    columns = {name: to_numpy(table.column(name)) for name in table.column_names}
    change(columns)
    data = part_bytes(Store.open(str(directory)).plan, columns, json.loads(table.schema.metadata[b"igkd.skipped"]))
    path.write_bytes(data)
    manifest["files"][part] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def duplicate_within(c: dict[str, Any]) -> None:
    c["image_id"][2] = c["image_id"][1]


def other_id(c: dict[str, Any]) -> None:
    c["image_id"][2] = 9999


def duplicate_across(c: dict[str, Any]) -> None:
    c["image_id"][0] = 3


def other_sha(c: dict[str, Any]) -> None:
    c["image_sha"][2] = bytes(16)


def swapped_images(c: dict[str, Any]) -> None:
    c["image"][[0, 1]] = c["image"][[1, 0]]


def not_a_picture(c: dict[str, Any]) -> None:
    c["image"][4] = b"nothing"


def another_size(c: dict[str, Any]) -> None:
    small = np.zeros((8, 9, 3), np.uint8)
    c["image"][4], c["image_sha"][4] = encode_png(small), pixel_hash(small)


def large_label(c: dict[str, Any]) -> None:
    c["label"][2] = 10


def negative_label(c: dict[str, Any]) -> None:
    c["label"][2] = -1


def not_finite(column: str, value: float) -> Callable[[dict[str, Any]], None]:
    def change(c: dict[str, Any]) -> None:
        c[column][(3, *[0] * (c[column].ndim - 1))] = value

    return change
