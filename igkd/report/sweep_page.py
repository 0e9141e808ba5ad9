"""A sweep, ablation grid or tuning, as one HTML page that stands alone, as a Markdown table for a paper, and as a table for a terminal.

Every figure comes from the rows in a `SweepReport`. An ablation's accuracies are those on the test set where its rows have them;
a tuning's are always those on the validation split, since the test set is none of its business.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from igkd.evaluation.chance import chance_note
from igkd.evaluation.comparisons import Family, Group, Measure, accuracy, families, grouped, history, settings, varied
from igkd.evaluation.importance import FEWEST, importances
from igkd.evaluation.significance import Comparison
from igkd.report import charts, classes, html, sweep_charts
from igkd.report.pipeline_page import GalleryRow, Latency
from igkd.report.sweep_charts import Dots, Trend

COMPRESSIONS = (2.19, 4.12, 7.29, 12.04, 28.97, 54.59, 139.43, 1121.71)
PUBLISHED: dict[str, dict[float, float]] = {
    arm: dict(zip(COMPRESSIONS, accuracies, strict=True))
    for arm, accuracies in {
        "student": (0.9094, 0.9042, 0.9063, 0.8971, 0.8788, 0.8409, 0.7601, 0.5544),
        "kd": (0.9121, 0.9071, 0.9020, 0.8968, 0.8795, 0.8400, 0.7680, 0.5475),
        "kd+ig": (0.9167, 0.9066, 0.9106, 0.9000, 0.8726, 0.8479, 0.7644, 0.5479),
    }.items()
}
"""Hernandez, Chang, Nordling (arXiv 2503.13008): arm to compression to accuracy, the best of ten runs, chosen on the test set."""

SHOWN = 10
"""Number of trials in the table of the best, and of commands that are shown."""
MEANING = {"test": "test accuracy, %", "validation": "validation accuracy, %"}


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """The content of the page."""

    title: str
    kind: Literal["ablation", "tuning"]
    rows: list[dict[str, Any]]
    """Result rows with `cell` (the run's name), `share` (of the training set that it used) and `state`: "done", "pruned" or "diverged"."""
    failures: list[dict[str, Any]]
    """`cell`, `tries` and `error` of every run without a row."""
    progress: str
    """How far the sweep is, as `evaluation.progress` says it."""
    commands: list[str]
    note: str = ""
    """A sentence under the title."""
    teacher: dict[str, Any] | None = None
    """The teacher's result row; its accuracies may be NaN."""
    gallery: list[GalleryRow] = field(default_factory=list)
    latency: list[Latency] = field(default_factory=list)
    """Latencies of "teacher" and of each "student, NETWORK"."""
    best: dict[str, Any] | None = None
    """The settings that a tuning chose."""

    @property
    def done(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("state", "done") == "done"]

    @property
    def pruned(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("state") == "pruned"]

    @property
    def diverged(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("state") == "diverged"]

    @property
    def measure(self) -> Measure:
        return "test" if self.kind == "ablation" and any("test" in row for row in self.done) else "validation"


@dataclass(frozen=True, kw_only=True)
class View:
    """A report's rows in order: groups of repeats, comparisons, and trials with the best first."""

    groups: list[Group]
    """Groups of an ablation's finished runs on the whole training set."""
    partial: list[Group]
    """Groups of an ablation's finished runs on shares of the training set."""
    families: list[Family]
    trials: list[dict[str, Any]]
    """A tuning's finished trials that have an accuracy."""
    tuned: list[str]
    lost: list[str]
    """Cells of runs that diverged, or whose accuracy is not a number."""
    chance: str
    """A sentence that names the arms, or trials, that may only be lucky; "" if there are none."""


def view_of(report: SweepReport) -> View:
    measure, done, tuning = report.measure, report.done, report.kind == "tuning"
    whole = [row for row in done if row.get("share", 1.0) >= 1]
    groups = [] if tuning else grouped(whole, measure)
    shares: dict[float, list[dict[str, Any]]] = {}
    for row in done:
        if row.get("share", 1.0) < 1 and not tuning:
            shares.setdefault(float(row["share"]), []).append(row)
    trials = [row for row in done if math.isfinite(accuracy(row, measure))] if tuning else []
    trials.sort(key=lambda row: -accuracy(row, measure))
    return View(
        groups=groups,
        partial=[
            replace(group, label=f"{group.label}, {share:.4g}" if len(shares) > 1 else group.label)
            for share in sorted(shares)
            for group in grouped(shares[share], measure)
        ],
        families=families(groups),
        trials=trials,
        tuned=varied(report.rows) if tuning else [],
        lost=[cell_of(row) for row in done if not math.isfinite(accuracy(row, measure))] + [cell_of(row) for row in report.diverged],
        chance=chance_note({g.label: g.rows for g in groups} or {cell_of(row): [row] for row in trials[:SHOWN]}),
    )


def render(report: SweepReport) -> str:
    """The page as HTML that needs no other file."""
    view, measure = view_of(report), report.measure
    places = {arm: i for i, arm in enumerate(dict.fromkeys(group.arm for group in [*view.groups, *view.partial]))}
    by_network: dict[str, list[Group]] = {}
    for group in sorted(view.groups, key=lambda group: group.compression):
        by_network.setdefault(group.network, []).append(group)
    numbers = {network: number for number, network in enumerate(by_network)}
    points = _points(view, report.pruned)
    source = html.provenance([*([report.teacher] if report.teacher else []), *report.rows], report.commands)
    return (
        html.environment()
        .get_template("sweep.html.j2")
        .render(
            report=report,
            view=view,
            measure=measure,
            meaning=MEANING[measure],
            differences=differences_of(view),
            dots={
                network: Markup(sweep_charts.dots([_dots(g, g.arm, places) for g in members], MEANING[measure], f"dots{numbers[network]}"))
                for network, members in by_network.items()
            },
            by_network=by_network,
            compression=Markup(_compression(view.groups, places, measure)) if len(by_network) > 1 else "",
            published=[arm for arm in PUBLISHED if measure == "test" and any(g.base == arm and g.own for g in view.groups)],
            speed=Markup(_speed(report, view.groups, places)),
            curves={
                network: Markup(_curves(members, places, report.teacher, numbers[network]))
                for network, members in by_network.items()
                if any(map(_epochs, members))
            },
            trials=view.trials[:SHOWN],
            accuracy=lambda row: accuracy(row, measure),
            settings=settings,
            surface=Markup(sweep_charts.surface(*points, ("alpha", "temperature"))) if len(points[0]) else "",
            importances=(weights := importances(view.trials, view.tuned)),
            weights=_importance(weights),
            best=_best(report),
            fewest=FEWEST,
            trial_curves=Markup(_trial_curves(view, report)) if report.kind == "tuning" else "",
            spread=Markup(sweep_charts.dots(_spread(view.partial, places), MEANING[measure], "spread", box=True)) if view.partial else "",
            sizes=_sizes(report.rows),
            **_by_class(report, view),
            shown=SHOWN,
            **source,
        )
    )


def differences_of(view: View) -> dict[str, dict[str, Comparison]]:
    """Label -> "student" or "kd" -> the comparison with that arm."""
    found: dict[str, dict[str, Comparison]] = {group.label: {} for group in view.groups}
    for family in view.families:
        for (arm, reference), comparison in zip(family.pairs, family.comparisons, strict=True):
            if reference.own and not reference.undone:  # else it is a control
                found[arm.label][reference.base] = comparison
    return found


def _importance(weights: Mapping[str, float]) -> Markup:
    """The chart of the settings' importance; empty if nothing was found."""
    named = {name.replace("_", " "): share for name, share in weights.items()}
    return Markup(sweep_charts.shares(named, "share of the importance, %", "importance") if named else "")


def _best(report: SweepReport) -> dict[str, str]:
    """The settings that a tuning chose, as text."""
    return {name: ", ".join(map(html.figure, v if isinstance(v, list | tuple) else [v])) for name, v in (report.best or {}).items()}


def _by_class(report: SweepReport, view: View) -> dict[str, Any]:
    """Accuracy by class of the teacher and of the groups of the best one's network, and what the best one takes for what."""
    judged = [group for group in view.groups if report.measure == "test" and math.isfinite(group.mean)]
    best = max(judged, key=lambda group: group.mean, default=None)
    if best is None:
        return {"by_class": None, "confusion": None, "several": False}
    answers: dict[str, list[Mapping[str, Any]]] = {"teacher": [report.teacher]} if report.teacher and report.teacher["test"] else {}
    answers |= {group.label: [row for row in group.rows if "test" in row] for group in judged if group.network == best.network}
    return {
        "by_class": classes.class_table(answers),
        "confusion": classes.confusion(best.label, answers[best.label]),
        "several": any(len(rows) > 1 for rows in answers.values()),
    }


def _dots(group: Group, label: str, places: Mapping[str, int]) -> Dots:
    mean, low, high = group.interval
    return Dots(label=label, place=places[group.arm], values=list(group.by_seed.values()), mean=mean, low=low, high=high)


def _spread(groups: Sequence[Group], places: Mapping[str, int]) -> list[Dots]:
    return [
        Dots(label=g.label, place=places[g.arm], values=list(g.by_seed.values()), mean=g.mean, low=g.mean - g.sd, high=g.mean + g.sd)
        for g in groups
    ]


def _compression(groups: Sequence[Group], places: Mapping[str, int], measure: Measure) -> str:
    sizes = [group.compression for group in groups]
    trends = []
    drawn: set[str] = set()
    for arm, place in places.items():
        members = [group for group in groups if group.arm == arm]
        if len(members) < 2:
            continue
        base, near = members[0].base, (0.9 * min(sizes), 1.1 * max(sizes))
        shown = measure == "test" and members[0].own and base not in drawn
        drawn |= {base} if shown else set()
        hollow = [(x, y) for x, y in PUBLISHED.get(base, {}).items() if shown and near[0] <= x <= near[1]]
        trends.append(Trend(label=arm, place=place, points=[(g.compression, *g.interval) for g in members], hollow=hollow))
    return sweep_charts.trends(trends, "times fewer parameters than the teacher", MEANING[measure], "compression", log=True)


def _speed(report: SweepReport, groups: Sequence[Group], places: Mapping[str, int]) -> str:
    times = {entry.model: entry.p50 for entry in report.latency if entry.batch == 1}
    trends = []
    for arm, place in places.items():
        points = [(times[name], *g.interval) for g in groups if g.arm == arm and (name := f"student, {g.network}") in times]
        trends += [Trend(label=arm, place=place, points=points)] if points else []
    best = accuracy(report.teacher, report.measure) if report.teacher else math.nan
    teacher = (times["teacher"], best) if "teacher" in times and math.isfinite(best) else None
    title = MEANING[report.measure]
    return sweep_charts.trends(trends, "milliseconds an image, warm, batch 1", title, "speed", teacher=teacher) if trends else ""


def _epochs(group: Group) -> dict[int, list[float]]:
    """Epoch -> the runs' validation accuracies, for the epochs that all runs reached."""
    histories = [found for row in group.rows if (found := history(row))]
    common = sorted(set.intersection(*map(set, histories))) if histories else []
    return {epoch: [found[epoch] for found in histories] for epoch in common}


def _curves(groups: Iterable[Group], places: Mapping[str, int], teacher: Mapping[str, Any] | None, number: int) -> str:
    lines = {group.arm: epochs for group in groups if (epochs := _epochs(group))}
    level = accuracy(teacher, "validation") if teacher else math.nan
    return charts.curves(lines, level if math.isfinite(level) else None, f"curves{number}", [places[arm] for arm in lines])


def _trial_curves(view: View, report: SweepReport) -> str:
    finished, stopped = ([h for row in rows if (h := history(row))] for rows in (view.trials, report.pruned))
    return sweep_charts.trial_curves(finished, stopped, finished[0] if finished else None) if finished or stopped else ""


def _points(view: View, pruned: Iterable[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) alpha, temperature and accuracy of finished trials, (M, 2) of stopped ones; both empty unless both settings were tuned."""
    if not {"alpha", "temperature"} <= set(view.tuned):
        return np.empty((0, 3)), np.empty((0, 2))
    finished = [[(own := settings(row))["alpha"], own["temperature"], accuracy(row, "validation")] for row in view.trials]
    stopped = [[(own := settings(row))["alpha"], own["temperature"]] for row in pruned]
    return np.array(finished, dtype=float).reshape(-1, 3), np.array(stopped, dtype=float).reshape(-1, 2)


def _sizes(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row of each network."""
    sized = sorted((row for row in rows if "parameters" in row), key=lambda row: -int(row["parameters"]))
    return list({row["network"]: row for row in sized}.values())


def cell_of(row: Mapping[str, Any]) -> str:
    return str(row.get("cell", row["name"]))


def values_of(row: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    own = settings(row)
    return [html.figure(own[name]) if name in own else "–" for name in names]
