"""The lines of `jobs.backend.training`, without a training."""

from pathlib import Path
from typing import Any

import pytest

from jobs.backend.training import headline, tell_outcome


def row(confusion: list[list[int]]) -> dict[str, Any]:
    right, images = sum(line[place] for place, line in enumerate(confusion)), sum(map(sum, confusion))
    return {"classes": 2, "test": {"accuracy": right / images, "correct": right, "count": images, "confusion": confusion}}


def test_where_classes_differ_in_size_the_most_frequent_one_stands_beside_chance(capsys: pytest.CaptureFixture[str]) -> None:
    """57 of 60 pictures are of one class, and a network that has learned nothing is right on 95 %."""
    constant, learned, equal = row([[57, 0], [3, 0]]), row([[55, 2], [0, 3]]), row([[28, 2], [1, 29]])
    assert headline(constant) == "test accuracy 95.0% (chance 50.0%, the most frequent class 95.0%) on 60 images"
    assert headline(equal) == "test accuracy 95.0% (chance 50.0%) on 60 images"
    for one, warned in ((constant, True), (learned, False), (equal, False)):
        tell_outcome("teacher", one, Path("out"))
        assert ("near chance (50.0% with 2 classes; 95.0% by always" in capsys.readouterr().out) == warned
