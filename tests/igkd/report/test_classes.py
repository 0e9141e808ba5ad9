"""Accuracy by class and confusions of rows, and their tables in the page."""

import math
from typing import Any

import pytest

from igkd.evaluation.evaluate import CONFUSION_CLASSES
from igkd.report.classes import class_table, confusion
from igkd.report.pipeline_page import render
from tests.helpers.pages import HOSTILE, Page, report, result
from tests.helpers.sweep_rows import checked, row, sweep

CLASSES = ("cat", "dog", "ox")


def with_counts(row: dict[str, Any], counts: list[list[int]], names: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    """A result row whose test images were answered so; a class without images has no accuracy."""
    accuracies = [counts[i][i] / sum(counts[i]) if sum(counts[i]) else None for i in range(len(counts))]
    return row | {"test": row["test"] | {"per_class": dict(zip(names, accuracies, strict=True)), "confusion": counts}}


def runs() -> list[dict[str, Any]]:
    one = with_counts(result("kd", 0), [[8, 2, 0], [3, 7, 0], [0, 0, 0]])
    other = with_counts(result("kd", 1), [[6, 4, 0], [5, 5, 0], [0, 0, 0]])
    return [one, other]


def test_accuracies_are_means_over_runs_and_absent_ones_are_left_open() -> None:
    table = class_table({"teacher": [result(None)], "kd": runs()})
    assert table is not None and table.models == ["kd"] and table.classes == 3
    assert [name for name, _ in table.rows] == list(CLASSES)
    assert table.rows[0][1] == pytest.approx([0.7]) and table.rows[1][1] == pytest.approx([0.6]) and math.isnan(table.rows[2][1][0])
    assert class_table({"kd": [result("kd")]}) is None


def test_confusions_are_shares_of_all_runs() -> None:
    found = confusion("kd", [*runs(), result("kd", 2)])
    assert found is not None and found.runs == 2 and found.rows[0] == ("cat", [0.7, 0.3, 0.0]) and found.rows[1] == ("dog", [0.4, 0.6, 0.0])
    assert all(math.isnan(share) for share in found.rows[2][1])
    assert found.pairs == ["dog for cat (40.0 %)", "cat for dog (30.0 %)"]
    assert confusion("kd", [result("kd")]) is None


def test_rows_of_other_classes_are_left_out() -> None:
    """A given teacher may know more classes, or the same by other names; and rows of another order cannot be added up."""
    more = with_counts(result(None), [[9, 1, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0], [5, 0, 0, 5]], (*CLASSES, "pig"))
    other = with_counts(result(None), [[9, 1, 0], [0, 10, 0], [0, 0, 10]], ("0", "1", "2"))
    for teacher in (more, other):
        table = class_table({"teacher": [teacher], "kd": runs()})
        assert table is not None and (table.models, table.classes) == (["kd"], 3) and [name for name, _ in table.rows] == list(CLASSES)
        assert "teacher" not in Page(render(report(runs(), teacher=teacher))).row("accuracy, %")
    turned = with_counts(result("kd", 2), [[0, 0, 9], [0, 9, 0], [9, 0, 0]], CLASSES[::-1])
    found = confusion("kd", [turned, more, *runs()])
    assert found is not None and found.runs == 2 and found.rows[0] == ("cat", [0.7, 0.3, 0.0])


def test_of_many_classes_the_hardest_are_shown() -> None:
    count = CONFUSION_CLASSES + 5
    names = tuple(f"class {i}" for i in range(count))
    counts = [[i if i == j else count - i if j == (i + 1) % count else 0 for j in range(count)] for i in range(count)]
    table = class_table({"kd": [with_counts(result("kd"), counts, names)]})
    assert table is not None and table.classes == count and [name for name, _ in table.rows] == list(names[:CONFUSION_CLASSES])


def test_the_page_has_both_for_the_best_arm() -> None:
    """The arm with the highest accuracy; a teacher's row without classes is left out."""
    worse = with_counts(result("student", 0, 500), [[5, 5, 0], [5, 5, 0], [0, 0, 10]])
    page = Page(render(report([worse, *runs()])))
    assert ["accuracy, %", "student", "kd"] in page.rows
    assert ["cat", "50.0", "70.0"] in page.rows and ["ox", "100.0", "–"] in page.rows
    assert "What kd takes for what" in page.text and ["dog", "40.0", "60.0", ""] in page.rows and ["ox", "–", "–", "–"] in page.rows
    assert "dog for cat (40.0 %), cat for dog (30.0 %)" in page.text and "over 2 runs" in page.text
    assert "runs." not in Page(render(report(runs()[:1]))).text.split("in % of the row")[1].splitlines()[0]
    assert "Class by class" not in Page(render(report())).text


def test_the_page_of_a_sweep_has_both_for_the_network_of_its_best_arm() -> None:
    counts = [[8, 2, 0], [3, 7, 0], [0, 0, 0]]
    small = [with_counts(row("kd", seed, 0.8, network="mobilenet:cut=9"), counts) for seed in (0, 1)]
    large = [with_counts(row(arm, seed, accuracy), counts) for arm, accuracy in (("student", 0.9), ("kd", 0.91)) for seed in (0, 1)]
    page = checked(sweep([*small, *large, row("student", 2, 0.9), row("kd", 3, test=False)]))
    assert "Class by class" in page.text and "over 2 runs" in page.text and ["dog", "30.0", "70.0", ""] in page.rows
    best = next(group for group in ("kd", "student") if f"What {group}" in page.text)
    assert best == "kd" and any(cells[0] == "accuracy, %" and len(cells) == 3 for cells in page.rows)
    assert "Class by class" not in checked(sweep()).text and "Class by class" not in checked(sweep([row("kd", test=False)])).text


def test_hostile_names_of_classes_are_text() -> None:
    page = Page(render(report([with_counts(result("kd"), [[1, 2], [0, 3]], (HOSTILE, "b"))])))
    assert not page.open and "script" not in {tag for tag, _ in page.tags} and '<script>alert("x")</script>' in page.text
