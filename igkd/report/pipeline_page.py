"""One run of the pipeline as one HTML page: without scripts or other files, readable on a phone, in dark mode and on paper.

Every figure comes from the result rows and pictures in a `Report`. `summary_table` gives the main figures as text for a terminal.
"""

import math
import textwrap
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from igkd.evaluation.chance import chance_note
from igkd.evaluation.comparisons import families, grouped
from igkd.evaluation.significance import t_interval, wilson_interval
from igkd.report import charts, classes, html


@dataclass(frozen=True, kw_only=True)
class GalleryRow:
    """One picture and each model's map of it."""

    label: str
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    teacher_map: NDArray[np.floating[Any]]
    """(H, W), any scale"""
    overlay: NDArray[np.floating[Any]]
    """(H, W, 3) in [0, 1]: the picture overlaid with the teacher's map, as students see it"""
    student_maps: dict[str, NDArray[np.floating[Any]]]
    """Arm -> map (H, W), any scale; an arm may be missing."""
    mask: NDArray[np.bool_] | None
    """(H, W), True on the object; None if that is not known"""
    teacher_prediction: str
    student_predictions: dict[str, str]
    """Arm -> name of the class that it predicts."""


@dataclass(frozen=True, kw_only=True)
class Focus:
    """How much of a model's maps lies on the object; the model "uniform map" is a control with the same value everywhere."""

    model: str
    inside: float
    """Mean share of the map's mass inside the mask, in [0, 1]."""
    low: float
    high: float
    """`low` and `high`: its 95 % interval."""
    hits: float
    """Share of images whose brightest pixel lies inside the mask (the pointing game)."""
    images: int


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Warm inference time of one model at one batch size, on the CPU."""

    model: str
    parameters: int
    multiply_adds: int
    batch: int
    threads: int
    p50: float
    p95: float
    """p50 and p95: percentiles over warm calls, in milliseconds."""
    times_as_fast: float
    """Speed relative to the teacher at the same batch size."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the page; `teacher` and `students` are result rows as the jobs write them."""

    title: str
    summary_note: str
    teacher: dict[str, Any]
    students: list[dict[str, Any]]
    """Rows with the same arm and network are repeats with different seeds."""
    gallery: list[GalleryRow]
    focus: list[Focus]
    latency: list[Latency]
    store: dict[str, Any]
    """Figures of the store, from `igkd.store.check.describe`."""
    commands: list[str]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of the headline table: the teacher, or the runs of an arm."""

    label: str
    runs: list[dict[str, Any]]

    @property
    def first(self) -> dict[str, Any]:
        return self.runs[0]

    @property
    def compression(self) -> float:
        return float(self.first.get("compression", 1))

    @property
    def digits(self) -> int:
        """Decimals of an accuracy in per cent: only those that a single test image can change."""
        return 2 if self.first["test"]["count"] >= 10_000 else 1

    @property
    def validation(self) -> float:
        """Mean of the runs' validation accuracies after the last epoch; NaN without an epoch."""
        return fmean(run["history"][-1]["validation_accuracy"] if run["history"] else math.nan for run in self.runs)

    @property
    def test(self) -> tuple[float, float, float]:
        """Test accuracy and its 95 % interval: over seeds if there are several, else over test images."""
        if len(self.runs) > 1:
            return t_interval([run["test"]["accuracy"] for run in self.runs])
        return self.first["test"]["accuracy"], *wilson_interval(self.first["test"]["correct"], self.first["test"]["count"])

    def mean(self, *path: str) -> float:
        """Mean over the runs of a figure of the evaluation on test images; NaN if a run lacks it."""
        values = []
        for run in self.runs:
            found: Any = run["test"]
            for key in path:
                found = found.get(key, {}) if isinstance(found, dict) else {}
            values.append(float(found) if isinstance(found, int | float) else math.nan)
        return fmean(values)


def render(report: Report) -> str:
    """The page as HTML that needs no other file."""
    lines = _lines(report)
    arms = lines[1:]
    return (
        html.environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            lines=lines,
            arms=arms,
            likeness=any(math.isfinite(line.mean("agreement")) for line in arms),
            mapped=[line for line in arms if math.isfinite(line.mean("maps", "cosine", "mean"))],
            scale=_scale(lines),
            single=any(len(line.runs) == 1 for line in arms),
            several=any(len(line.runs) > 1 for line in arms),
            comparisons=_sentences(report),
            by_class=classes.class_table({line.label: line.runs for line in lines}),
            confusion=_confusion(lines),
            curves=Markup(charts.curves({arm.label: _history(arm) for arm in arms}, _finite(lines[0].validation))),
            bars=Markup(_bars(report.focus, [arm.label for arm in arms])),
            **html.provenance([report.teacher, *report.students], report.commands),
        )
    )


def _confusion(lines: list[_Line]) -> classes.Confusion | None:
    """That of the student with the highest accuracy, or of the teacher if there is no student."""
    best = max(lines[1:] or lines, key=lambda line: line.test[0])
    return classes.confusion(best.label, best.runs)


def summary_table(report: Report) -> str:
    """The main table as text of at most 80 columns."""
    rows = [("model", "parameters", "smaller", "test", "95 % interval", "seeds")]
    for line in _lines(report):
        accuracy, low, high = (html.percent(share, line.digits) for share in line.test)
        size = f"{line.first['parameters']:,}", f"{line.compression:.2f}x"
        rows.append((charts.squeezed(line.label, 24), *size, f"{accuracy} %", f"{low}-{high}", str(len(line.runs))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if i < 1 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    chance = chance_note({line.label: line.runs for line in _lines(report)})
    notes = [textwrap.fill(note, 80, subsequent_indent="  ") for note in [*([chance] if chance else []), *_sentences(report)]]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _sentences(report: Report) -> list[str]:
    """What the arms' differences over the seeds say; empty with one seed."""
    found = families(grouped(report.students, "test"))
    return [f"{one.sentence}." for family in found for one in family.comparisons if one.seeds > 1]


def _lines(report: Report) -> list[_Line]:
    """The teacher's line, then one for every arm and network in order of appearance."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report.students:
        groups.setdefault((row["name"], row["network"]), []).append(row)
    for (arm, network), runs in groups.items():
        if len({run["seed"] for run in runs}) < len(runs):
            raise ValueError(f"arm {arm} of network {network} holds two results of one seed: they are no independent repeats")
    one_network = len({network for _, network in groups}) == 1
    students = [_Line(label=arm if one_network else f"{arm}, {network}", runs=runs) for (arm, network), runs in groups.items()]
    return [_Line(label="teacher", runs=[report.teacher]), *students]


def _history(arm: _Line) -> dict[int, list[float]]:
    """Epoch -> the runs' validation accuracies, for the epochs that all runs reached."""
    histories = [{entry["epoch"]: float(entry["validation_accuracy"]) for entry in run["history"]} for run in arm.runs]
    return {epoch: [history[epoch] for history in histories] for epoch in sorted(set.intersection(*map(set, histories)))}


def _bars(focus: list[Focus], arms: list[str]) -> str:
    if not focus:
        return ""
    colours = [arms.index(entry.model) if entry.model in arms else None for entry in focus]
    reference = next((entry.inside for entry in focus if entry.model == "uniform map"), None)
    return charts.bars([(entry.model, entry.inside, entry.low, entry.high) for entry in focus], colours, reference)


def _scale(lines: list[_Line]) -> tuple[float, float]:
    """The lowest and highest end of all intervals: the range of the whiskers' axis in the table."""
    ends = [end for line in lines for end in line.test if math.isfinite(end)] or [0.0, 1.0]
    return min(ends), max(max(ends), min(ends) + 1e-6)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
