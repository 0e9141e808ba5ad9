import math
from typing import Any

import pytest

from igkd.evaluation.chance import chance_note, chance_of, figures_near_chance, near_chance, row_near_chance


def test_near_chance() -> None:
    # 100 of 1,000 are 10 %; 3 standard deviations above are 128.5.
    assert near_chance(100, 1000, 10) and near_chance(128, 1000, 10) and not near_chance(129, 1000, 10) and near_chance(0, 10, 2)
    assert not near_chance(3, 3, 3) and near_chance(1, 3, 3) and not near_chance(30, 30, 3)


def judged(confusion: list[list[int]]) -> dict[str, Any]:
    right, images = sum(line[place] for place, line in enumerate(confusion)), sum(map(sum, confusion))
    return {"accuracy": right / images, "correct": right, "count": images, "confusion": confusion}


@pytest.mark.parametrize(
    ("confusion", "lucky"),
    [
        ([[57, 0], [3, 0]], True),  # 95 % by one answer
        ([[950, 0], [50, 0]], True),
        ([[950, 0], [10, 40]], False),  # 80 % of the few, and all of the many
        ([[48, 52], [52, 48]], True),
        ([[7, 0, 0], [6, 0, 0], [0, 0, 0]], True),  # of two of three classes
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], False),
        ([[13, 87], [87, 13]], True),  # worse than chance: labels in another order
    ],
)
def test_always_the_most_frequent_class_is_chance(confusion: list[list[int]], lucky: bool) -> None:
    assert figures_near_chance(judged(confusion), len(confusion)) == lucky
    assert row_near_chance({"classes": len(confusion), "test": judged(confusion)}) == lucky


@pytest.mark.parametrize("right", [100, 128, 129, 500])
def test_with_equal_classes_it_is_the_same_test(right: int) -> None:
    confusion = [[0] * 10 for _ in range(10)]
    for place in range(10):
        confusion[place][place] = right // 10 + (place < right % 10)
        confusion[place][place - 1] = 100 - confusion[place][place]
    assert figures_near_chance(judged(confusion), 10) == near_chance(right, 1000, 10)


def test_chance_names_the_most_frequent_class_where_classes_differ_in_size() -> None:
    assert chance_of(2, judged([[57, 0], [3, 0]])) == "50.0% with 2 classes; 95.0% by always giving the most frequent class"
    assert chance_of(2, judged([[30, 0], [30, 0]])) == chance_of(2) == "50.0% with 2 classes"


def row(accuracy: float, *, test: bool = True, **changes: Any) -> dict[str, Any]:
    figures = {"accuracy": accuracy, "correct": 0 if math.isnan(accuracy) else round(1000 * accuracy), "count": 1000}
    made = {"classes": 10, "images": {"validation": 1000}, "history": [{"validation_accuracy": accuracy}]}
    return made | ({"test": figures} if test else {}) | changes


@pytest.mark.parametrize("test", [True, False])
def test_a_row_near_chance(test: bool) -> None:
    assert row_near_chance(row(0.1, test=test)) and not row_near_chance(row(0.5, test=test))
    # What says too little is accused of nothing.
    assert not row_near_chance(row(math.nan, test=test)) and not row_near_chance({"history": []})
    assert not row_near_chance(row(0.1, test=False, history=[])) and not row_near_chance(row(0.1, test=False, images={}))
    assert row_near_chance(row(0.5, test=False, history=[{"validation_accuracy": 0.9}, {"validation_accuracy": 0.1}]))


def test_an_arm_is_named_only_if_all_its_seeds_are_near_chance() -> None:
    note = chance_note({"student": [row(0.1), row(0.11)], "kd": [row(0.1), row(0.5)], "none": []})
    assert note == "near chance (10.0% with 10 classes): student; its accuracy says nothing about learning"
    assert "student, kd; their accuracies" in chance_note({"student": [row(0.1)], "kd": [row(0.09)]})
    assert chance_note({"kd": [row(0.5)]}) == ""
