"""Progress of a pipeline before its students start, found from the files in its directory: teacher, store, views."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from igkd.base.errors import UserError
from igkd.base.run_directory import STATE, read_object


def describe_stages(root: Path) -> list[str]:
    """A line of text for each stage that was started.

    Raises:
        UserError: a file of a stage is damaged.
    """
    return [*_teacher(root / "teacher"), *_files(root / "store", "plan.json", "manifest.json", "part", "store"),
            *_files(root / "store", "views-plan.json", "views-manifest.json", "views", "views")]  # fmt: skip


def _teacher(directory: Path) -> Iterator[str]:
    if not (directory / "config.json").exists():
        return
    epochs = read_object(directory / "config.json").get("epochs")
    if (directory / "result.json").exists():
        test = read_object(directory / "result.json").get("test", {})
        yield f"teacher: finished, test accuracy {test.get('accuracy', float('nan')):.2%}"
        return
    states = sorted(directory.glob(f"checkpoints/*/{STATE}"))
    history: list[dict[str, Any]] = []
    for path in reversed(states):
        try:
            with safe_open(path, "np") as file:
                history = json.loads(file.metadata()["history"])
            break
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            continue  # being written or deleted: use the checkpoint before it
    if not history:
        yield f"teacher: epoch 0 of {epochs}"
        return
    last = history[-1]
    yield f"teacher: epoch {len(history)} of {epochs}, validation {last['validation_accuracy']:.2%}, {last['seconds']:.0f} s an epoch"


def _files(store: Path, plan: str, manifest: str, kind: str, what: str) -> Iterator[str]:
    if not (store / plan).exists():
        return
    if (store / manifest).exists():
        yield f"{what}: finished"
        return
    try:
        made = read_object(store / plan)
        parts = -(-int(made["rows"]) // int(made["rows_per_file"]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise UserError(f"{store / plan} is damaged; delete {store} and run the pipeline's command again") from None
    yield f"{what}: {len(list(store.glob(f'{kind}-*.parquet')))} of {parts} parts"
