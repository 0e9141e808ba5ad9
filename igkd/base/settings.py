"""What kind of setting a field of a configuration is. Each field says so once, where it is declared: `field(default=1, metadata=SPEED)`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from igkd.base.errors import UserError

Kind = Literal["learning", "run", "place", "speed"]

RUN: Mapping[str, Kind] = {"kind": "run"}
"""Which of a sweep's runs it is: arm, network, seed and the like."""
PLACE: Mapping[str, Kind] = {"kind": "place"}
"""Where something lies. What matters of it is in a run's fingerprints."""
SPEED: Mapping[str, Kind] = {"kind": "speed"}
"""How fast a run is, how long it may take, how it is judged: this may differ when it goes on."""


def check_seeds(*seeds: int) -> None:
    """Raise UserError if a seed is none that all generators take: those of torch, NumPy and Optuna."""
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise UserError(f"a seed must be between 0 and {2**32 - 1:,}, not {wrong[0]}")


def check_out(out: str | None, what: str = "directory") -> None:
    """Raise UserError if --out is given and is no path: runs, checkpoints, reports and results are not written to object storage."""
    if out is not None and not out.strip():
        raise UserError(f"--out must name a {what}, and is empty")
    if out is not None and "://" in out:
        raise UserError(f"--out {out} must be a {what} in a file system that all nodes see; only the store may be on S3")


def check_side(image_size: int | None) -> None:
    """Raise UserError if --image-size is given and is no side of a picture."""
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size must be at least 1 pixel, not {image_size}")


def kinds(config: Any) -> dict[str, Kind]:
    """The kind of each field, by name; a field without a mark is part of how a run learns.

    Args:
        config: a dataclass, or an instance of one.
    """
    return {field.name: field.metadata.get("kind", "learning") for field in dataclasses.fields(config)}
