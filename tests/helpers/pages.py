"""Reading the HTML pages that reports are, and rows to draw them from."""

import math
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from igkd.report.pipeline_page import Focus, GalleryRow, Latency, Report

HOSTILE = """<script>alert("x")</script>'"&$\\frac{ \x01"""
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags with their attributes, the text of the page outside its style sheet, and the cells of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data.strip()

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == name)


def result(arm: str | None, seed: int = 0, correct: int = 610, count: int = 1000, network: str = "mobilenet:cut=5") -> dict[str, Any]:
    history = [{"epoch": epoch, "train_loss": 2.0, "validation_accuracy": 0.2 * epoch + 0.01 * seed, "seconds": 9.1} for epoch in (1, 2, 3)]
    provenance = {"command": f"python -m jobs.distill --seed {seed}", "commit": "abc1234", "versions": {"torch": "2.15.0"}, "seconds": 61.2}
    size = (
        {"parameters": 543498, "multiply_adds": 58_700_000, "compression": 4.12}
        if arm
        else {"parameters": 2236682, "multiply_adds": 88_000_000}
    )
    test = {"accuracy": correct / count, "correct": correct, "count": count, "loss": 1.2}
    return (
        {"name": arm or "teacher", "network": network, "seed": seed, "history": history, "test": test, "provenance": provenance}
        | size
        | ({"arm": arm} if arm else {})
    )


def gallery_row(label: str = "ring", arm: str = "kd", size: int = 16, mask: bool = True) -> GalleryRow:
    rng = np.random.default_rng(0)
    inside = np.zeros((size, size), bool)
    inside[4:9, 5:11] = True
    return GalleryRow(
        label=label,
        image=rng.integers(0, 256, (size, size, 3), np.uint8),
        teacher_map=rng.random((size, size), np.float32),
        overlay=rng.random((size, size, 3)),
        student_maps={arm: rng.random((size, size))},
        mask=inside if mask else None,
        teacher_prediction=label,
        student_predictions={arm: "not " + label},
    )


def report(students: list[dict[str, Any]] | None = None, arm: str = "kd", **changes: Any) -> Report:
    """The content of a pipeline's page, with these students and changes."""
    plain = Report(
        title="A run",
        summary_note="A note.",
        teacher=result(None, correct=850),
        students=[result(arm)] if students is None else students,
        gallery=[gallery_row(arm=arm)],
        focus=[Focus(model=name, inside=0.4, low=0.35, high=0.45, hits=0.7, images=50) for name in ("teacher", arm, "uniform map")],
        latency=[
            Latency(model=arm, parameters=543498, multiply_adds=58_700_000, batch=64, threads=2, p50=12.5, p95=13.4, times_as_fast=1.09)
        ],
        store={"images": 4000, "bytes_per_image": 3086.42, "engine": "fast", "delta_p99": math.nan, "shape": [3, 32, 32]},
        commands=["python -m jobs.pipeline --preset shapes"],
    )
    return replace(plain, **changes)
