"""Whether an accuracy may be luck: a network that answers at random is right about one image in as many as there are classes.

One that always gives the most frequent class is right more often where classes differ in size; so it is the mean of the classes'
accuracies that is compared, which is the same for both.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def near_chance(correct: int, count: int, classes: int) -> bool:
    """Whether so many right answers may be luck: they are not above chance by three standard deviations (of a binomial distribution), and
    nearer to chance than to all."""
    chance = 1 / classes
    luck = count * chance + 3 * math.sqrt(count * chance * (1 - chance))
    return correct <= min(luck, count * (1 + chance) / 2)


def figures_near_chance(figures: Mapping[str, Any], classes: int) -> bool:
    """Whether the accuracy that `igkd.evaluation.evaluate.evaluate` found may be luck.

    With a confusion matrix of at least two classes it is the balanced accuracy, the mean over classes with images, that must be above
    chance, by three standard deviations of a mean of binomial shares.
    """
    counts = np.array(figures.get("confusion", []))
    images = counts.sum(axis=1) if counts.size else counts
    present = images > 0
    if present.sum() < 2:
        return near_chance(figures["correct"], figures["count"], classes)
    chance = 1 / float(present.sum())
    balanced = float((counts.diagonal()[present] / images[present]).mean())
    deviation = chance * math.sqrt(chance * (1 - chance) * float((1 / images[present]).sum()))
    return balanced <= min(chance + 3 * deviation, (1 + chance) / 2) + 1e-9


UNEQUAL = 1.5
"""The most frequent class's share of the images is told where it is so many times chance."""


def most_frequent(figures: Mapping[str, Any], classes: int) -> float | None:
    """The accuracy of always giving the most frequent class; None where classes are of about equal size, or that is not known."""
    counts = np.array(figures.get("confusion", []))
    share = float(counts.sum(axis=1).max() / counts.sum()) if counts.size and counts.sum() else 0.0
    return share if share > UNEQUAL / classes else None


def chance_of(classes: int, figures: Mapping[str, Any] | None = None) -> str:
    """The accuracy of random answers, as text; and, where classes differ in size, that of always giving the most frequent one.

    Args:
        figures: as from `igkd.evaluation.evaluate.evaluate`.
    """
    often = most_frequent(figures or {}, classes)
    always = "" if often is None else f"; {often:.1%} by always giving the most frequent class"
    return f"{1 / classes:.1%} with {classes:,} classes{always}"


def row_near_chance(row: Mapping[str, Any]) -> bool:
    """Whether the accuracy of a result row may be luck: on the test images, or on the validation split if there are none. False for a row
    without an accuracy or without its number of classes."""
    classes, test = int(row.get("classes", 0)), row.get("test")
    if classes < 1:
        return False
    if test:
        return math.isfinite(test["accuracy"]) and figures_near_chance(test, classes)
    count = int((row.get("images") or {}).get("validation") or 0)
    accuracy = row["history"][-1]["validation_accuracy"] if row.get("history") else math.nan
    return bool(count and math.isfinite(accuracy)) and near_chance(round(accuracy * count), count, classes)


def chance_note(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A sentence that names those that may only be lucky; "" if there are none.

    Args:
        arms: name to its result rows, one a seed; it is named if all its rows are near chance.
    """
    named = [name for name, rows in arms.items() if rows and all(map(row_near_chance, rows))]
    if not named:
        return ""
    classes = int(next(rows[0]["classes"] for name, rows in arms.items() if name in named))
    whose = "its accuracy says" if len(named) == 1 else "their accuracies say"
    return f"near chance ({chance_of(classes)}): {', '.join(named)}; {whose} nothing about learning"
