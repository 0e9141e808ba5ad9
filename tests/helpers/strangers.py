"""What files of a stranger are made from, and what must come of them."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  # registers Arrow types of its own, as in every job

from igkd.base.errors import UserError
from igkd.networks.network import NetworkSpec
from igkd.store import part_name
from igkd.sweeps.ledger import Status
from igkd.training.state import History
from tests.helpers.pages import HOSTILE

SPEC = NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name="mobilenet:cut=15,width=0.1")


PIXELS = np.zeros((8, 8, 3), np.uint8)


def refused(read: Callable[[], object], words: str = ".") -> None:
    """It ends with one sentence that says what to do, and soon."""
    with pytest.raises(UserError, match=words) as caught:
        read()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def replace_part(directory: Path, table: pa.Table, **options: Any) -> None:
    """Make a table the first part, with a manifest that says so."""
    path = directory / part_name(0)
    pq.write_table(table, path, write_page_checksum=True, **options)
    manifest = json.loads((directory / "manifest.json").read_bytes())
    data = path.read_bytes()
    manifest["files"][0] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def history(epochs: int = 2) -> History:
    """The rows of some epochs."""
    return [{"epoch": n + 1, "validation_accuracy": 0.5, "seconds": 1.0} for n in range(epochs)]


SWEEP = Status(command=f"python -m jobs.ablate {HOSTILE}", planned=[], total=4, slots=1, began=0.0, phase="stopped")


def result(**changes: Any) -> dict[str, Any]:
    """The row of a student of one epoch."""
    row = {
        "job": "distill",
        "name": "kd",
        "arm": "kd",
        "network": "mobilenet:cut=5",
        "seed": 0,
        "share": 1.0,
        "state": "done",
        "history": history(1),
    }
    row |= {"test": {"accuracy": 0.5, "correct": 5, "count": 10}, "parameters": 7, "multiply_adds": 7, "compression": 4.0, "images": {}}
    return row | {"config": {"store": "", "teacher": None}, "provenance": {"versions": {}}} | changes


def sweep(root: Path, status: Any = None, **rows: Any) -> Path:
    """The directory of a sweep with these results."""
    for name, row in rows.items():
        (root / "students" / name).mkdir(parents=True)
        (root / "students" / name / "result.json").write_text(json.dumps(row))
    root.mkdir(exist_ok=True)
    (root / "status.json").write_text(json.dumps(dataclasses.asdict(SWEEP) if status is None else status))
    return root
