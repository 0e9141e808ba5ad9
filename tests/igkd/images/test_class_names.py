"""Two lists of classes: matched by name, else by number, else refused in one sentence."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igkd.base.errors import UserError
from igkd.images.class_names import distinct, named, renumbering

WORDS = st.lists(st.text("abcxyz ", min_size=1, max_size=3), min_size=2, max_size=14, unique=True)
WNIDS = [f"n{k:08d}" for k in range(7, 7 + 3 * 1000, 3)]


def between(known: list[str], given: list[str], imagenet: bool = False) -> list[int]:
    return renumbering(known, given, "the teacher t", "images i", "do this", imagenet).tolist()


@given(WORDS, st.randoms())
def test_names_in_any_order_are_found(names: list[str], random: object) -> None:
    other = list(names)
    random.shuffle(other)  # type: ignore[attr-defined]
    numbers = between(names, other)
    assert [names[n] for n in numbers] == other and sorted(numbers) == list(range(len(names)))
    assert [other[n] for n in between(other, names)] == names


@given(st.integers(1, 130), st.sampled_from(["", "0"]))
def test_a_directorys_order_of_numbers_is_no_order_of_classes(count: int, padding: str) -> None:
    """0, 1, 10, 11, 2: whether the other list has these numbers, too, or names in the order of the numbers."""
    numeric, sorted_as_text = [str(n) for n in range(count)], sorted(padding + str(n) for n in range(count))
    names = [f"class {n}" for n in range(count)]
    for known in (numeric, names):
        assert between(known, sorted_as_text) == [int(name) for name in sorted_as_text]
    assert [sorted_as_text[n] for n in between(sorted_as_text, names)] == [padding + str(n) for n in range(count)]
    assert between(numeric, names) == list(range(count)) == between(names, numeric)


@given(WORDS, st.data())
def test_other_classes_are_refused_in_one_sentence_that_names_them(names: list[str], data: st.DataObject) -> None:
    without = data.draw(st.sampled_from(names))
    fewer = [name for name in names if name != without]
    for known, other, words in (
        (names, fewer, f"the teacher t knows {len(names)} classes, images i has {len(fewer)}, not {without}; do this"),
        (fewer, names, f"the teacher t knows {len(fewer)} classes, images i has {len(names)}, {without} besides; do this"),
        (names, [*fewer, "new"], f"the teacher t knows other classes ({without}, ...) than images i (new, ...); do this"),
        (names, [*fewer, "new", "newer"], f"the teacher t knows {len(names)} classes, images i has {len(names) + 1}; do this"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
            between(known, other)


def test_names_that_occur_twice_are_sound_only_in_the_same_order() -> None:
    crane = ["crane", "ox", "crane"]
    assert between(crane, list(crane)) == [0, 1, 2] == between(crane, ["0", "1", "2"])
    for other in (["ox", "crane", "crane"], ["crane", "ox", "ox"]):
        with pytest.raises(UserError, match="more than one is called crane"):
            between(crane, other)


def test_numbers_counted_in_two_ways_are_refused() -> None:
    """1 to 10 may be 0 to 9 counted from 1, in numerical order or in that of a directory: a wrong guess gives wrong labels."""
    from_one, from_zero = sorted(map(str, range(1, 11))), list(map(str, range(10)))
    for pair in ((from_one, from_zero), (from_zero, from_one), (["1", "2", "3"], ["0", "1", "2"]), (["0", "1", "2"], ["a", "1", "b"])):
        with pytest.raises(UserError, match="are numbered differently, so which is which cannot be told"):
            between(*pair)
    classes = [f"class{number}" for number in range(1, 11)]
    with pytest.raises(UserError, match="are numbered differently"):
        between(from_zero, sorted(classes))  # class10 before class2
    assert between(from_zero, classes) == list(range(10))
    assert between(["ten", "eleven", "b12"], ["2", "0", "1"]) == [2, 0, 1]


def test_accents_may_be_characters_of_their_own() -> None:
    """As file systems of Macs write them."""
    assert between(["b", "caf\u00e9"], ["cafe\u0301", "b"]) == [1, 0]


def test_numbered_names_are_distinct_from_the_others() -> None:
    assert len(set(distinct(["a", "a", "a (1)"]))) == 3 and distinct(["a", "b", "a"]) == ["a (0)", "b", "a (2)"]


@pytest.mark.parametrize("numbers", [["1", "2", "3"], ["0", "1", "1"], ["0", "1", "3"], ["0", "1", "-2"], ["0", "1", "²"]])
def test_numbers_that_are_not_those_of_the_classes_are_names(numbers: list[str]) -> None:
    with pytest.raises(UserError, match="knows other classes"):
        between(["a", "b", "c"], numbers)


def test_imagenet_by_another_spelling() -> None:
    torchvisions = [f"thing {n}" for n in range(1000)]
    synonyms = [f"Thing_{n}, res {n}" if n % 20 else f"only {n}" for n in range(1000)]
    shuffled = np.random.default_rng(0).permutation(1000)
    assert between(torchvisions, WNIDS, imagenet=True) == list(range(1000)) == between(torchvisions, synonyms, imagenet=True)
    assert between(torchvisions, [WNIDS[i] for i in shuffled], imagenet=True) == shuffled.tolist()
    for other in ([synonyms[i] for i in shuffled], [f"bird {n}" for n in range(1000)], sorted(synonyms)):
        with pytest.raises(UserError, match="knows other classes"):
            between(torchvisions, other, imagenet=True)
    with pytest.raises(UserError, match="knows other classes"):
        between(torchvisions, WNIDS)


def test_lists_with_names_go_before_those_with_numbers() -> None:
    assert named(["0", "1"], ["b", "a"]) == ("b", "a") == named(["b", "a"], ["0", "1"])
    assert named(["1", "0"], ["0", "1"]) == ("1", "0")
