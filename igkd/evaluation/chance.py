"""Whether an accuracy may be luck: a network that answers at random is right about one image in as many as there are classes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def near_chance(correct: int, count: int, classes: int) -> bool:
    """Whether so many right answers may be luck: they are not above chance by three standard deviations (of a binomial distribution), and
    nearer to chance than to all."""
    chance = 1 / classes
    luck = count * chance + 3 * math.sqrt(count * chance * (1 - chance))
    return correct <= min(luck, count * (1 + chance) / 2)


def chance_of(classes: int) -> str:
    """The accuracy of random answers, as text."""
    return f"{1 / classes:.1%} with {classes:,} classes"


def row_near_chance(row: Mapping[str, Any]) -> bool:
    """Whether the accuracy of a result row may be luck: on the test images, or on the validation split if there are none. False for a row
    without an accuracy or without its number of classes."""
    classes, test = int(row.get("classes", 0)), row.get("test")
    if classes < 1:
        return False
    if test:
        return math.isfinite(test["accuracy"]) and near_chance(test["correct"], test["count"], classes)
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
