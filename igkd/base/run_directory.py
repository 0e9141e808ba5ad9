"""A run's directory: config.json says which run it belongs to, result.json holds the run's result row."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

from igkd.base.errors import UserError
from igkd.base.schema import fits
from igkd.base.settings import kinds
from igkd.base.storage import read_json, write_json

STATE = "state.safetensors"
"""Name of the file that a run resumes from, in its directory or checkpoint."""

TEST = ("accuracy", "correct", "count")


class ResultRow(TypedDict, total=False):
    """What came out of a run: OUT/result.json, and a line of a sweep's rows. Written by `training.run.finish_run`, read by `read_row`."""

    job: str
    """teacher or distill."""
    name: str
    """What tells it from runs of other arms, controls and recipes in a table: "kd+ig, other, strong"."""
    arm: str
    """What the student learned from: kd+ig."""
    content: str
    """What was laid over: own, or a control."""
    recipe: str
    without: str
    """The choice of the recipe that was undone; "" where none was."""
    network: str
    """The network's name: mobilenet:cut=5."""
    seed: int | None
    cell: str
    """Its directory in a sweep."""
    state: str
    """done, pruned or diverged."""
    share: float
    """Of the training images."""
    settings: dict[str, Any]
    """What a search proposed."""
    config: dict[str, Any]
    images: dict[str, Any]
    """Numbers of training and validation images, and of those left out."""
    history: list[dict[str, Any]]
    """A row an epoch."""
    test: dict[str, Any]
    """Figures on the test images."""
    classes: int
    """Number of classes."""
    parameters: int
    multiply_adds: int
    compression: float
    """Parameters of the teacher by those of the student."""
    precision: str
    compiled: bool
    provenance: dict[str, Any]
    error: str


ROW = get_type_hints(ResultRow)


def claim(out: Path, config: Any, fingerprints: Mapping[str, str | None]) -> dict[str, Any] | None:
    """Reserve `out` for the run with this configuration, or find that this run is already there.

    Args:
        out: the run's directory; created if missing.
        config: a dataclass.
        fingerprints: further values that identify the run, such as the hash of its images.

    Returns:
        the result row if the run is already finished, else None.

    Raises:
        UserError: the directory belongs to another configuration, or cannot be written to.
    """
    identity = _identity(config, dataclasses.asdict(config)) | dict(fingerprints)
    path = out / "config.json"
    if path.exists():
        # A setting added since that run was written had, in effect, its present default.
        usual = {f.name: f.default for f in dataclasses.fields(config) if f.default is not MISSING}
        earlier = _identity(config, usual | read_object(path))
        differing = sorted(k for k in identity.keys() | earlier.keys() if identity.get(k) != earlier.get(k))
        if differing:
            changes = ", ".join(f"{k} was {earlier.get(k)!r} and is now {identity.get(k)!r}" for k in differing)
            raise UserError(f"{out} belongs to another configuration ({changes}); choose another --out or delete that directory")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not a run of this project (it has no config.json); choose another --out")
    else:
        write_json(path, identity)
    result = out / "result.json"
    return read_row(result) if result.exists() else None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises UserError if the file is missing or holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is no JSON object; it was damaged or is not ours")
    return value


def is_history(value: Any) -> bool:
    """Whether a value from JSON is a valid training history: a list with one object for each epoch."""
    return fits(value, list[dict[str, Any]]) and all(_numbers(entry, ("epoch", "validation_accuracy", "seconds")) for entry in value)


def _numbers(values: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether all these entries exist and are numbers; NaN counts as a number."""
    return all(type(values.get(name)) in (int, float) for name in names)


def read_row(path: Path) -> dict[str, Any]:
    """Read the result row of a run.

    Raises:
        UserError: the file is missing, or an entry that reports need is missing or has the wrong type.
    """
    row = read_object(path)
    wrong = next((name for name, hint in ROW.items() if name in row and not fits(row[name], hint)), None)
    if wrong is None and not is_history(row.get("history")):
        wrong = "history"
    if wrong is None and not _numbers(row.get("test", dict.fromkeys(TEST, 0)), TEST):
        wrong = "test"
    if wrong is not None or not fits(row.get("provenance", {}).get("versions", {}), dict[str, str]):
        raise UserError(
            f"{path} is not the result of a run ({wrong or 'provenance'} is missing or has the wrong type); delete it and run again"
        )
    return row


def _identity(config: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that identify a run, with lists in place of tuples, as they are after reading them from JSON."""
    kept = {name: value for name, value in settings.items() if kinds(config).get(name) not in ("place", "speed")}
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain
