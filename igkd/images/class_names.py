"""Lists of classes: a label is an index into one, and wherever two of them meet, labels of one are renumbered into those of the other."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from igkd.base.errors import UserError

IMAGENET_CLASSES = 1000
SAME = 0.9
"""Share of the places at which two spellings of ImageNet's classes must share a synonym to be in the same order."""


def renumbering(
    known: Sequence[str], given: Sequence[str], name: str, others: str, remedy: str, imagenet: bool = False
) -> NDArray[np.int64]:
    """The number that each class of one list has in another: by name, or by number where one of them has only numbers for names.

    Args:
        known: the classes of what is numbered by, such as a teacher.
        given: the classes of what is renumbered, such as images.
        name, others: what they are of, in messages.
        remedy: what to do where they are not the same classes.
        imagenet: whether one of them is a classifier of torchvision's, which has its own spelling of ImageNet's classes; the other may
            then have WordNet ids, whose order is the usual one, or another spelling in the usual order.

    Returns:
        int64 (len(given),): `result[label]` is what `label` is in `known`.

    Raises:
        UserError: they are not the same classes, or cannot be told apart by their names.
    """
    known, given = tuple(known), tuple(given)
    if known == given:
        return np.arange(len(known))
    mine, theirs = set(known), set(given)
    if len(known) != len(given):
        raise UserError(f"{name} knows {len(known)} classes, {others} has {len(given)}{_what_is_missing(known, given)}; {remedy}")
    if mine == theirs and len(mine) == len(known):
        place = {one: number for number, one in enumerate(known)}
        return np.array([place[one] for one in given])
    numbers = [_numbers(one, imagenet) for one in (known, given)]
    if any(one is not None for one in numbers):
        in_order = list(range(len(known)))  # names say nothing of numbers: those come in the order of the list
        place_of_number = np.argsort(in_order if numbers[0] is None else numbers[0])
        return place_of_number[in_order if numbers[1] is None else numbers[1]]
    if imagenet and _same_order(known, given):
        return np.arange(len(known))
    if mine == theirs:
        twice = next(one for one in known if known.count(one) > 1)
        raise UserError(
            f"{name} and {others} have the same classes in another order, and more than one is called {twice}, so they cannot be told "
            f"apart; {remedy}"
        )
    different = [[one for one in ours if one not in other][:4] for ours, other in ((known, theirs), (given, mine))]
    ours, those = (f" ({', '.join(some)}, ...)" if some else "" for some in different)
    raise UserError(f"{name} knows other classes{ours} than {others}{those}; {remedy}")


def named(*lists: Sequence[str]) -> tuple[str, ...]:
    """The first of several lists of the same classes in the same order that has names and not just numbers; else the first."""
    return tuple(next((names for names in lists if _numbers(names, False) is None), lists[0]))


def distinct(names: Sequence[str]) -> list[str]:
    """Class names, those that occur twice with their number."""
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _numbers(names: Sequence[str], imagenet: bool) -> list[int] | None:
    """The number that each class is called by, where all are: those of classes that nobody named. None where they have names.

    They may be in any order: a directory has 10 before 2. With `imagenet` WordNet ids are numbers, too.
    """
    if all(name.isascii() and name.isdecimal() and len(name) <= 9 for name in names):
        found = [int(name) for name in names]
        return found if sorted(found) == list(range(len(names))) else None
    if imagenet and len(names) == len(set(names)) == IMAGENET_CLASSES and all(re.fullmatch(r"n\d{8}", name) for name in names):
        place = {name: number for number, name in enumerate(sorted(names))}
        return [place[name] for name in names]
    return None


def _same_order(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two spellings of classes, such as "tench" and "tench, Tinca tinca", are in the same order."""
    synonyms = [[{word.strip().casefold().replace("_", " ") for word in name.split(",")} for name in names] for names in (one, other)]
    return sum(bool(a & b) for a, b in zip(*synonyms, strict=True)) >= SAME * len(one)


def _what_is_missing(known: Sequence[str], given: Sequence[str]) -> str:
    """Which classes only one of two lists has, where that is all that tells them apart; else nothing."""
    mine, theirs = set(known), set(given)
    if mine < theirs or theirs < mine:
        more = [one for one in (given if mine < theirs else known) if (one in theirs) != (one in mine)]
        names = ", ".join(more[:4]) + (", ..." if len(more) > 4 else "")
        return f", {names} besides" if mine < theirs else f", not {names}"
    return ""
