"""The report of jobs.search: validation accuracy against speed relative to the teacher, with the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from igkd.evaluation.comparisons import accuracy, history
from igkd.evaluation.speed import Latencies, Measured, pareto
from igkd.report import html, sweep_charts
from igkd.report.sweep_charts import Spot


@dataclass(frozen=True, kw_only=True)
class Student:
    """A trained network."""

    row: Mapping[str, Any]
    measured: Measured
    accuracy: float
    """Accuracy on the validation split after the last epoch; finite."""
    front: bool = False
    """Whether it is a candidate on the Pareto front: no other is at least as fast and accurate, and better in one."""
    number: int = 0
    """Its number in chart and table; the fastest student is first."""


@dataclass(frozen=True, kw_only=True)
class FrontReport:
    """The content of the page."""

    title: str
    progress: str
    """A line that says how many students are trained, stopped and failed."""
    failures: Mapping[str, Mapping[str, Any]]
    """Name of a failed run -> its number of `tries` and last `error`."""
    command: str
    rows: list[dict[str, Any]]
    latencies: Latencies
    teacher: Mapping[str, Any]
    """The card of the teacher's checkpoint."""
    best: str | None
    """The network's name in OUT/best.json."""
    note: str = ""

    @property
    def students(self) -> list[Student]:
        """The students that were trained to the end, the fastest first; only candidates can be on the front."""
        known = {one.network: one for one in self.latencies.measured}
        found = []
        for row in self.rows:
            measured = known.get(row["network"])
            if measured is not None and row["state"] == "done" and math.isfinite(share := accuracy(row, "validation")):
                found.append((row, measured, share))
        found.sort(key=lambda one: (-one[1].times_as_fast, one[1].network))
        candidates = [i for i, (_, measured, _) in enumerate(found) if measured.candidate]
        best = pareto([(found[i][1].times_as_fast, found[i][2]) for i in candidates])
        front = {i for i, good in zip(candidates, best, strict=True) if good}
        return [
            Student(row=row, measured=measured, accuracy=share, front=i in front, number=i + 1)
            for i, (row, measured, share) in enumerate(found)
        ]


def render(report: FrontReport) -> str:
    """The page as HTML that needs no other file."""
    students, timed = report.students, sorted(report.latencies.measured, key=lambda one: -one.times_as_fast)
    trained = {row["network"] for row in report.rows}
    spots = [
        Spot(x=one.measured.times_as_fast, y=one.accuracy, label=str(one.number), front=one.front, hollow=not one.measured.candidate)
        for one in students
    ]
    finished = [history(one.row) for one in students]
    stopped = [found for row in report.rows if row["state"] == "pruned" and (found := history(row))]
    chosen = next((history(one.row) for one in students if one.measured.network == report.best), None)
    commands = [report.latencies.provenance.get("command", report.command), report.command]
    return (
        html.environment()
        .get_template("front.html.j2")
        .render(
            report=report,
            students=students,
            candidates=[one for one in timed if one.candidate],
            enough=sum(one.candidate and one.times_as_fast >= report.latencies.budget for one in timed),
            timed=timed,
            trained=trained,
            chart=Markup(sweep_charts.front(spots, report.latencies.budget)) if spots else "",
            curves=Markup(sweep_charts.trial_curves(finished, stopped, chosen)) if finished or stopped else "",
            **html.provenance(report.rows, commands),
        )
    )


def summary(report: FrontReport) -> str:
    """The main figures as text: the students on the front, and the one they are compared with."""
    lines = [report.progress, "", f"{'student':34}  times as fast  {'(as eager)':>10}  parameters  validation"]
    for one in report.students:
        if one.front or not one.measured.candidate:
            m = one.measured
            lines.append(
                f"{m.network[:34]:34}  {m.times_as_fast:12.2f}x  {m.times_as_fast_as_eager:9.1f}x  {m.parameters:10,}  {one.accuracy:9.1%}"
            )
    return "\n".join(lines)


def best_row(rows: Sequence[Mapping[str, Any]], speeds: Mapping[str, float]) -> Mapping[str, Any] | None:
    """The finished candidate with the highest validation accuracy, and the fastest of equals; None if there is none.

    Args:
        speeds: a candidate's name to how many times as fast as the teacher it is.
    """
    done = [row for row in rows if row["state"] == "done" and row["network"] in speeds and math.isfinite(accuracy(row, "validation"))]
    return max(done, key=lambda row: (accuracy(row, "validation"), speeds[row["network"]]), default=None)
