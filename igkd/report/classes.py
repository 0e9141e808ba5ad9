"""What models do with the images of each class, from result rows: accuracy by class, and which classes are taken for which."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from igkd.evaluation.evaluate import CONFUSION_CLASSES
from igkd.evaluation.metrics import most_confused

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Accuracy by class of several models."""

    models: list[str]
    rows: list[tuple[str, list[float]]]
    """(class, accuracy in [0, 1] of each model, a mean over its runs; NaN for a class without images). Those with the lowest accuracies if
    there are more than `CONFUSION_CLASSES`."""
    classes: int
    """Number of all classes."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often a model takes the images of one class for another."""

    model: str
    rows: list[tuple[str, list[float]]]
    """(class, share of its images that were taken for each class, in the same order); NaN for a class without images."""
    runs: int
    """Number of runs whose answers were added up."""
    pairs: list[str]
    """The classes that are most often taken for another, in words."""


def class_table(models: Mapping[str, Sequence[Row]]) -> ClassTable | None:
    """Accuracy by class on the test images; None if no row has it.

    Args:
        models: label -> result rows of its runs. Those that have not the classes of the last row with any are left out, such as a given
            teacher of more classes.
    """
    every = [row["test"]["per_class"] for rows in models.values() for row in rows if "per_class" in row["test"]]
    if not every:
        return None
    names = list(every[-1])
    known = {label: found for label, rows in models.items() if (found := _of_classes(rows, names, "per_class"))}

    def mean(label: str, name: str) -> float:
        values = [value for row in known[label] if (value := row["test"]["per_class"][name]) is not None]
        return fmean(values) if values else math.nan

    rows = [(name, [mean(label, name) for label in known]) for name in names]
    if len(rows) > CONFUSION_CLASSES:
        rows = sorted(rows, key=lambda row: (math.isnan(sum(row[1])), sum(row[1])))[:CONFUSION_CLASSES]
    return ClassTable(models=list(known), rows=rows, classes=len(names))


def confusion(model: str, rows: Sequence[Row]) -> Confusion | None:
    """Which classes a model's runs took for which; None if no row says so. Runs with other classes than the last one's are left out."""
    known = [row for row in rows if "confusion" in row["test"]]
    if not known:
        return None
    names = list(known[-1]["test"]["per_class"])
    counts = np.array([row["test"]["confusion"] for row in _of_classes(known, names, "confusion")])
    total = counts.sum(axis=0)
    with np.errstate(invalid="ignore"):
        shares = total / total.sum(axis=1, keepdims=True)
    return Confusion(model=model, rows=list(zip(names, shares.tolist(), strict=True)), runs=len(counts), pairs=most_confused(names, shares))


def _of_classes(rows: Sequence[Row], names: list[str], measure: str) -> list[Row]:
    """The rows that have a measure, and for these classes in this order."""
    return [row for row in rows if measure in row["test"] and list(row["test"]["per_class"]) == names]
