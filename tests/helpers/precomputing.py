"""Short runs of jobs.precompute."""

import hashlib
from pathlib import Path

from igkd.config.precompute import PrecomputeConfig
from tests.helpers.paths import IMAGES

STEPS = 10


def configure(teacher: str, store: Path, **changes: object) -> PrecomputeConfig:
    """The settings of a run of seconds."""
    settings: dict[str, object] = {
        "images": IMAGES,
        "steps": STEPS,
        "engine": "captum",
        "precision": "float32",
        "rows_per_file": 7,
    } | changes
    return PrecomputeConfig(teacher=teacher, store=str(store), **settings)  # type: ignore[arg-type]


def digests(store: Path) -> dict[str, str]:
    """The SHA-256 of each file of a store."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(store.iterdir())}
