"""The page of a search for a fast student."""

from typing import Any

from igkd.evaluation.speed import Latencies
from igkd.report.pareto_page import FrontReport, render, summary
from tests.helpers.pages import Page
from tests.helpers.sweep_rows import row

NAMES = ("mobilenet:cut=5", "lean:2:8x1", "lean:4:8x1")


def measured(name: str, place: int) -> dict[str, Any]:
    return {
        "network": name, "candidate": name.startswith("lean:"), "parameters": 1000 - place, "multiply_adds": 10, "milliseconds": 1.0,
        "times_as_fast": 2.0 + place, "times_as_fast_as_eager": 3.0 + place,
    }  # fmt: skip


def test_the_trained_ones_and_the_best_are_named_and_all_are_timed() -> None:
    networks = [measured(name, place) for place, name in enumerate(NAMES)]
    latencies = Latencies(machine="m", rounds=2, load=(0.1,), budget=2.5, networks=networks, provenance={})
    rows = [row("kd") | {"network": name} for name in NAMES[:2]]
    report = FrontReport(
        title="A search", progress="2 of 2 runs finished", failures={}, command="c", rows=rows, latencies=latencies, teacher={},
        best="lean:2:8x1",
    )  # fmt: skip
    page = Page(render(report))
    assert page.row("1. lean:2:8x1 (best.json)") and page.row("2. mobilenet:cut=5")
    assert page.row("lean:4:8x1")[-1] == "no" and page.row("mobilenet:cut=5")[-1] != "no"
    assert summary(report).count("lean:2:8x1") == 1 and "lean:4:8x1" not in summary(report)
