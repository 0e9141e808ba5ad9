import math
from typing import Any

import pytest

from igkd.evaluation.chance import chance_note, near_chance, row_near_chance


def test_near_chance() -> None:
    # 100 of 1,000 are 10 %; 3 standard deviations above are 128.5.
    assert near_chance(100, 1000, 10) and near_chance(128, 1000, 10) and not near_chance(129, 1000, 10) and near_chance(0, 10, 2)
    assert not near_chance(3, 3, 3) and near_chance(1, 3, 3) and not near_chance(30, 30, 3)


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
