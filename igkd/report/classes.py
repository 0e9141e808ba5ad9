"""What models do with the images of each class, from result rows: accuracy by class, and which classes are taken for which."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

SHOWN = 20
"""At most this many classes are in a table."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Accuracy by class of several models."""

    models: list[str]
    rows: list[tuple[str, list[float]]]
    """(class, accuracy in [0, 1] of each model, a mean over its runs; NaN where that is not known)."""
    classes: int
    """Number of classes, of which `rows` has those with the lowest accuracy if it has not all."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often a model takes the images of one class for another."""

    model: str
    rows: list[tuple[str, list[float]]]
    """(class, share of its images that were taken for each class, in the same order), over all runs; NaN for a class without images."""
    pairs: list[str]
    """The classes that are most often taken for another, in words."""


def class_table(models: Mapping[str, Sequence[Row]]) -> ClassTable | None:
    """Accuracy by class on the test images; None if no row has it.

    Args:
        models: label -> result rows of its runs.
    """
    known = {
        label: found
        for label, rows in models.items()
        if (found := [row["test"]["per_class"] for row in rows if "per_class" in row["test"]])
    }
    names = list(dict.fromkeys(name for runs in known.values() for run in runs for name in run))
    if not names:
        return None

    def mean(label: str, name: str) -> float:
        values = [value for run in known[label] if (value := run.get(name)) is not None]
        return fmean(values) if values else math.nan

    rows = [(name, [mean(label, name) for label in known]) for name in names]
    if len(rows) > SHOWN:
        rows = sorted(rows, key=lambda row: (math.isnan(sum(row[1])), sum(row[1])))[:SHOWN]
    return ClassTable(models=list(known), rows=rows, classes=len(names))


def confusion(model: str, rows: Sequence[Row]) -> Confusion | None:
    """Which classes a model's runs took for which; None if its rows do not have it, or there are more than `SHOWN` classes."""
    counts = [row["test"]["confusion"] for row in rows if row["test"].get("confusion")]
    if not counts or len(counts[0]) > SHOWN:
        return None
    names = list(next(row for row in rows if row["test"].get("confusion"))["test"]["per_class"])
    total = np.sum([np.array(one) for one in counts], axis=0)
    with np.errstate(invalid="ignore"):
        shares = total / total.sum(axis=1, keepdims=True)
    wrong = np.where(np.eye(len(total), dtype=bool), 0, np.nan_to_num(shares))
    most = [divmod(int(i), len(names)) for i in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    pairs = [f"{names[i]} for {names[j]} ({100 * wrong[i, j]:.1f} %)" for i, j in most if wrong[i, j] > 0]
    return Confusion(model=model, rows=list(zip(names, shares.tolist(), strict=True)), pairs=pairs)
