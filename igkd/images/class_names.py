"""Comparing lists of class names. A label is an index into such a list; labels of one list are renumbered to those of another."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from igkd.base.errors import UserError

IMAGENET_CLASSES = 1000
SAME = 0.9
"""Two lists of ImageNet's classes count as equally ordered if this share of their entries has a synonym in common."""


def renumbering(
    known: Sequence[str], given: Sequence[str], name: str, others: str, remedy: str, imagenet: bool = False
) -> NDArray[np.int64]:
    """The index in `known` of each class of `given`: matched by name, or by number if one list's names are just numbers.

    Args:
        known: the classes to renumber to, such as a teacher's.
        given: the classes to renumber, such as those of images.
        name, others: who has the `known` and the `given` classes, for messages.
        remedy: for messages, what to do if the classes differ.
        imagenet: whether one list comes from a classifier of torchvision, which has its own spelling of ImageNet's classes. The other
            may then be WordNet ids, which sort in ImageNet's usual order, or another spelling in that order.

    Returns:
        int64 (len(given),): `result[label]` is the label in `known` for `label` in `given`.

    Raises:
        UserError: the classes differ, or several have the same name.
    """
    known, given = tuple(map(_composed, known)), tuple(map(_composed, given))
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
        _check_numbered(known, given, numbers, name, others, remedy)
        in_order = list(range(len(known)))  # a list of real names has no numbers: its classes are numbered in order
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


def among(known: Sequence[str], given: Sequence[str], name: str) -> NDArray[np.int64] | None:
    """The index in `known` of each class of `given`, if each is one of the known ones by its name, or by one of several synonyms that the
    known name lists ("tabby, tabby cat"), in any case and with spaces or underscores; else None.

    Args:
        name: who has the `known` classes, for messages.

    Returns:
        int64 (len(given),).

    Raises:
        UserError: a class could be several of the known ones, or two classes are the same known one.
    """
    exact: dict[str, set[int]] = {}
    words: dict[str, set[int]] = {}
    for number, one in enumerate(known):
        exact.setdefault(one, set()).add(number)
        for word in _synonyms(one) | {_word(one)}:
            words.setdefault(word, set()).add(number)
    found = []
    for one in given:
        places = exact.get(one) or words.get(_word(one))
        if places is None:
            return None
        if len(places) > 1:
            raise UserError(
                f"{one} could be {len(places)} classes that {name} knows ({', '.join(map(str, sorted(places)))}, counted from 0): "
                "say which by --class-map FILE"
            )
        found.append(next(iter(places)))
    for label, place in enumerate(found):
        if place in found[:label]:
            raise UserError(
                f"{given[found.index(place)]} and {given[label]} are one class of {name}, {known[place]}: merge them, or leave one out"
            )
    return np.array(found, dtype=np.int64)


def named(*lists: Sequence[str]) -> tuple[str, ...]:
    """Of several lists of the same classes, the first that has names instead of numbers; the first list if all have numbers."""
    return tuple(next((names for names in lists if _numbers(names, False) is None), lists[0]))


def distinct(names: Sequence[str]) -> list[str]:
    """Class names; a name that occurs more than once gets its number appended, as in "crane (134)"."""
    numbered = [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]
    return numbered if len(set(numbered)) == len(numbered) else [f"{name} ({number})" for number, name in enumerate(names)]


def _numbers(names: Sequence[str], imagenet: bool) -> list[int] | None:
    """The names as numbers, if they are exactly "0" to "N-1" in any order (a directory lists 10 before 2); else None.

    With `imagenet`, 1,000 WordNet ids count as numbers, too: their rank when sorted.
    """
    if all(name.isascii() and name.isdecimal() and len(name) <= 9 for name in names):
        found = [int(name) for name in names]
        return found if sorted(found) == list(range(len(names))) else None
    if imagenet and len(names) == len(set(names)) == IMAGENET_CLASSES and all(re.fullmatch(r"n\d{8}", name) for name in names):
        place = {name: number for number, name in enumerate(sorted(names))}
        return [place[name] for name in names]
    return None


def _check_numbered(
    known: Sequence[str], given: Sequence[str], numbers: Sequence[list[int] | None], name: str, others: str, remedy: str
) -> None:
    """Raise UserError where a list of plain numbers meets one of other numbers: 1 to 10 may be 0 to 9 counted from 1, or sorted as text.

    The same holds for class1 to class10, where the list has class10 before class2.
    """
    for names, own in zip((known, given), numbers, strict=True):
        found = [re.fullmatch(r"(\D*)(\d+)(\D*)", one, re.ASCII) for one in names]
        inside = [int(one[2]) for one in found if one] if len({one and (one[1], one[3]) for one in found}) == 1 and found[0] else []
        if own is None and (any(one.isdecimal() for one in names) or inside != sorted(inside)):
            lists = f"{', '.join(known[:4])}, ... and {others} {', '.join(given[:4])}, ..."
            raise UserError(f"{name} has the classes {lists}, which are numbered differently, so which is which cannot be told; {remedy}")


def _same_order(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two spellings of the classes, such as "tench" and "tench, Tinca tinca", list them in the same order."""
    synonyms = [[_synonyms(name) for name in names] for names in (one, other)]
    return sum(bool(a & b) for a, b in zip(*synonyms, strict=True)) >= SAME * len(one)


def _composed(name: str) -> str:
    """The name with each accented letter as one character: file systems differ in that."""
    return unicodedata.normalize("NFC", name)


def _word(name: str) -> str:
    return _composed(name).strip().casefold().replace("_", " ")


def _synonyms(name: str) -> set[str]:
    """The names in a list such as "tench, Tinca tinca", in lower case, with spaces for underscores."""
    return {_word(word) for word in name.split(",")}


def _what_is_missing(known: Sequence[str], given: Sequence[str]) -> str:
    """If one list contains the other, the surplus classes as part of a sentence; else ""."""
    mine, theirs = set(known), set(given)
    if mine < theirs or theirs < mine:
        more = [one for one in (given if mine < theirs else known) if (one in theirs) != (one in mine)]
        names = ", ".join(more[:4]) + (", ..." if len(more) > 4 else "")
        return f", {names} besides" if mine < theirs else f", not {names}"
    return ""
