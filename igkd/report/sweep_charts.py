"""The charts of a sweep's report, as inline SVG with the colours, pens and labels of `igkd.report.charts`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Polygon
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.spatial import ConvexHull, QhullError

from igkd.report.charts import DASHED, INK, LABEL, PALETTE, RULE, SOFT, WIDTH, chart, label_ends, pen, plain, svg

PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g}")
COLOURS = "viridis"
SMOOTHING = 0.02
"""Smoothing of thin-plate splines over a unit square: the surface passes near the dots, not through them, since accuracies are noisy."""
GOLDEN = 0.6180339887
"""Golden ratio: its multiples modulo 1 spread any number of dots evenly."""


@dataclass(frozen=True, kw_only=True)
class Dots:
    """A row of a chart of dots: an arm's values, their mean and a range, all as shares. NaN is not drawn."""

    label: str
    place: int
    """Index of the arm's colour in the palette, the same in all charts."""
    values: Sequence[float]
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A line in a chart of accuracy over another quantity: points (x, mean, low, high), and single points to compare with."""

    label: str
    place: int
    points: Sequence[tuple[float, float, float, float]]
    hollow: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A network in a chart of accuracy against speed; all numbers are finite."""

    x: float
    y: float
    label: str
    front: bool
    """Whether it is on the Pareto front; the others are drawn faint."""
    hollow: bool
    """Whether it is only there to compare with."""


def dots(rows: Sequence[Dots], title: str, name: str, *, box: bool = False) -> str:
    """A chart with a row for each arm: values as small dots, the mean as a large dot, the range as a whisker.

    Args:
        box: shade the range from the first to the third quartile.
    """
    longest = max((len(row.label) for row in rows), default=0)
    figure, axes = chart(height=0.3 * max(len(rows), 1), left=(12 + 5.4 * min(longest, LABEL)) / (72 * WIDTH), right=0.9)
    for y, row in enumerate(rows):
        colour = PALETTE[row.place % len(PALETTE)]
        axes.axhline(y, color=RULE, linewidth=0.7, zorder=0)
        values = [value for value in row.values if math.isfinite(value)]
        if box and len(values) > 3:
            first, third = np.quantile(values, [0.25, 0.75])
            axes.barh(y, third - first, left=first, height=0.62, color=colour, alpha=0.18)
        if math.isfinite(row.low) and math.isfinite(row.high):
            axes.plot([row.low, row.high], [y, y], color=INK if box else colour, linewidth=1.6, solid_capstyle="butt")
        if len(values) > 1:
            spread = [y + 0.5 * ((i + 1) * GOLDEN % 1 - 0.5) for i in range(len(values))]
            axes.plot(values, spread, linestyle="", marker="o", markersize=3.4, color=colour, alpha=0.7, markeredgewidth=0)
        if math.isfinite(row.mean):
            axes.plot(row.mean, y, linestyle="", marker=pen(row.place)["marker"], markersize=6.5, color=colour)
        text = f"{100 * row.mean:.1f}" if math.isfinite(row.mean) else "no value"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", color=INK, fontsize=10)
    axes.set_yticks(range(len(rows)), [plain(row.label) for row in rows], parse_math=False)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_title(title, loc="left", color=SOFT, fontsize=10, pad=8)
    return svg(figure, name)


def trends(
    lines: Sequence[Trend], axis: str, title: str, name: str, *, log: bool = False, teacher: tuple[float, float] | None = None
) -> str:
    """A chart of accuracy over compression or time: one line with whiskers for each arm; its single points are hollow.

    Args:
        log: use a logarithmic axis, with a tick at every x of a line.
        teacher: the teacher's (x, accuracy), drawn as a single point.
    """
    longest = max((len(line.label) for line in lines), default=0)
    height = max(2.6, 0.2 * (len(lines) + 1))
    figure, axes = chart(height=height, left=0.09, right=1 - (34 + 5.4 * min(longest, LABEL)) / (72 * WIDTH))
    xs = sorted({x for line in lines for x, *_ in line.points})
    span = (xs[-1] / xs[0] if log else xs[-1] - xs[0] or xs[0]) if xs else 1.0
    ends: list[tuple[float, str, int]] = []
    for order, line in enumerate(lines):
        shift = 0.045 * (order - (len(lines) - 1) / 2) / max(len(lines) - 1, 1)  # so that whiskers do not cover each other
        points = sorted(point for point in line.points if math.isfinite(point[1]))
        x, mean, low, high = (np.array([point[i] for point in points], dtype=float) for i in range(4))
        x = x * span**shift if log else x + span * shift
        axes.plot(x, mean, linewidth=1.6, markersize=4.5, **pen(line.place))
        axes.vlines(
            x, np.where(np.isfinite(low), low, mean), np.where(np.isfinite(high), high, mean), color=pen(line.place)["color"], lw=1.1
        )
        if line.hollow:
            other = np.array(line.hollow, dtype=float)
            axes.plot(other[:, 0], other[:, 1], **pen(line.place) | {"linestyle": ""}, markersize=6, markerfacecolor="none")
        if len(mean):
            ends.append((float(mean[-1]), line.label, line.place))
    if teacher is not None:
        axes.plot(*teacher, linestyle="", marker="*", markersize=9, color=SOFT)
        axes.annotate("teacher", teacher, (4, 6), textcoords="offset points", va="bottom", ha="right", color=INK, fontsize=10)
    if log:
        axes.set_xscale("log")
        axes.set_xticks(xs, _factors(xs))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.06, y=0.08)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set_xlabel(axis, color=SOFT, fontsize=10)
    axes.set_title(title, loc="left", color=SOFT, fontsize=10, pad=8)
    label_ends(axes, sorted(ends))
    return svg(figure, name)


def front(spots: Sequence[Spot], budget: float) -> str:
    """A chart of accuracy against speed: the front as a line with numbered dots, others faint, networks to compare with hollow.

    Args:
        spots: at least one.
        budget: speed at which to draw a vertical line.
    """
    figure, axes = chart(height=3.0, left=0.09, right=0.97)
    axes.axvline(budget, color=SOFT, linewidth=1, linestyle=DASHED, zorder=0)
    best = sorted((spot for spot in spots if spot.front), key=lambda spot: spot.x)
    axes.plot([spot.x for spot in best], [spot.y for spot in best], color=PALETTE[0], linewidth=1.6, zorder=1)
    for spot in spots:
        colour = PALETTE[1] if spot.hollow else PALETTE[0]
        face, faint = "none" if spot.hollow else colour, 1.0 if spot.front or spot.hollow else 0.35
        axes.plot(spot.x, spot.y, linestyle="", marker="D" if spot.hollow else "o", markersize=7, color=colour, mfc=face, alpha=faint)
        axes.annotate(spot.label, (spot.x, spot.y), (7, 4), textcoords="offset points", color=INK, alpha=faint, fontsize=10)
    axes.margins(x=0.08, y=0.12)
    axes.annotate("budget", (budget, 1.0), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points", va="top", color=SOFT)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set_xlabel("times as fast as the teacher, int8, one image, one thread", color=SOFT, fontsize=10)
    axes.set_title("validation accuracy, %", loc="left", color=SOFT, fontsize=10, pad=8)
    return svg(figure, "front")


def surface(trials: NDArray[np.float64], stopped: NDArray[np.float64], names: tuple[str, str]) -> str:
    """A chart of validation accuracy over two settings: each trial as a dot, coloured by its accuracy, on a smooth interpolation.

    Args:
        trials: (N, 3), first setting, second setting and accuracy of the finished trials; N at least 1.
        stopped: (M, 2), settings of trials that were stopped early, drawn as crosses.
        names: names of the settings; the first has a logarithmic axis if all its values are above 0.

    Where all accuracies are equal none is the best, and there are no colours to explain.
    """
    figure, axes = chart(height=3.0, left=0.1, right=0.82)
    axes.use_sticky_edges = False
    first = np.concatenate([trials[:, 0], stopped[:, 0]])
    log = bool((first > 0).all())
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if first.max() < 100 * first.min() else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    least = float(trials[:, 2].min())
    equal = float(trials[:, 2].max()) == least
    greatest = least + 1e-6 if equal else float(trials[:, 2].max())
    norm = Normalize(least, greatest)
    if (found := _interpolated(trials, log)) is not None:
        x, y, height, hull = found
        levels = np.linspace(least, greatest, 13)
        filled = axes.contourf(x, y, height.clip(least, greatest), levels=levels, cmap=COLOURS, norm=norm, alpha=0.5, antialiased=False)
        filled.set_clip_path(Polygon(hull, transform=axes.transData))
    axes.scatter(trials[:, 0], trials[:, 1], c=trials[:, 2], cmap=COLOURS, norm=norm, s=38, edgecolors=INK, linewidths=0.8, zorder=3)
    axes.scatter(stopped[:, 0], stopped[:, 1], marker="x", c=SOFT, s=18, linewidths=0.9, zorder=2)
    if not equal:
        best = trials[trials[:, 2].argmax()]
        axes.scatter(best[0], best[1], s=130, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=3)
    axes.margins(x=0.06, y=0.08)
    axes.set_xlabel(plain(names[0]), color=SOFT, fontsize=10)
    axes.set_title(plain(names[1]), loc="left", color=SOFT, fontsize=10, pad=8)
    if not equal:
        _colour_bar(axes, norm)
    return svg(figure, "surface")


def shares(values: Mapping[str, float], title: str, name: str) -> str:
    """A chart of shares that add up to 1, as bars from top to bottom."""
    longest = max((len(label) for label in values), default=0)
    figure, axes = chart(height=0.3 * max(len(values), 1), left=(12 + 5.4 * min(longest, LABEL)) / (72 * WIDTH), right=0.92)
    for y, value in enumerate(values.values()):
        axes.barh(y, value, height=0.62, color=PALETTE[0], alpha=0.75)
        axes.annotate(f"{100 * value:.0f}", (value, y), (6, 0), textcoords="offset points", va="center", color=INK, fontsize=10)
    axes.set_yticks(range(len(values)), [plain(label) for label in values], parse_math=False)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(max(len(values), 1) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_title(title, loc="left", color=SOFT, fontsize=10, pad=8)
    return svg(figure, name)


def trial_curves(finished: Sequence[Mapping[int, float]], stopped: Sequence[Mapping[int, float]], best: Mapping[int, float] | None) -> str:
    """A chart of many trials' accuracy by epoch: thin lines; stopped ones fainter, with a cross at the end; the best one thick."""
    figure, axes = chart(height=2.6, left=0.09, right=0.86)
    for trial in stopped:
        axes.plot(list(trial), list(trial.values()), color=SOFT, linewidth=0.8, alpha=0.5, marker="x", markersize=4, markevery=[-1])
    for trial in finished:
        axes.plot(list(trial), list(trial.values()), color=PALETTE[0], linewidth=0.9, alpha=0.5, marker="o" if len(trial) == 1 else "")
    axes.margins(x=0.02, y=0.06)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch", color=SOFT, fontsize=10)
    axes.set_title("validation accuracy, %", loc="left", color=SOFT, fontsize=10, pad=8)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    if best:
        axes.plot(list(best), list(best.values()), linewidth=2, markersize=4, markevery=max(1, len(best) // 12), **pen(1))
        label_ends(axes, [(list(best.values())[-1], "best", 1)])
    return svg(figure, "trials")


def _factors(xs: Sequence[float]) -> list[str]:
    """Labels of a logarithmic axis at these ascending positions; "" where a label would overlap the previous one."""
    labels, last = [], 0.0
    for x in xs:
        apart = last == 0 or math.log(x / last) > 0.16 * math.log(xs[-1] / xs[0])
        labels.append((f"{x:.2g}×" if x < 10 else f"{x:,.0f}×") if apart else "")
        last = x if apart else last
    return labels


def _interpolated(trials: NDArray[np.float64], log: bool) -> tuple[NDArray[np.float64], ...] | None:
    """Grid (x, y), a smooth surface on it, and the polygon around the dots; None if there are fewer than 6 or all lie on one line."""
    where, index = np.unique(trials[:, :2], axis=0, return_inverse=True)
    if len(where) < 6:
        return None
    mean = np.bincount(index.ravel(), trials[:, 2]) / np.bincount(index.ravel())
    flat = np.column_stack([np.log(where[:, 0]) if log else where[:, 0], where[:, 1]])
    low, extent = flat.min(axis=0), np.ptp(flat, axis=0)
    if not extent.all():
        return None
    flat = (flat - low) / extent  # scale both axes to the same length, as they are drawn
    try:
        hull = where[ConvexHull(flat).vertices]
        height = RBFInterpolator(flat, mean, smoothing=SMOOTHING)
    except (QhullError, np.linalg.LinAlgError):
        return None
    u, v = np.meshgrid(*[np.linspace(0, 1, 61)] * 2)
    x, y = low[0] + u * extent[0], low[1] + v * extent[1]
    return np.exp(x) if log else x, y, height(np.column_stack([u.ravel(), v.ravel()])).reshape(u.shape), hull


def _colour_bar(axes: Axes, norm: Normalize) -> None:
    figure = axes.get_figure()
    assert figure is not None
    box = axes.get_position()
    beside = figure.add_axes((box.x1 + 0.035, box.y0, 0.03, box.height))
    levels = np.linspace(float(norm.vmin or 0), float(norm.vmax or 1), 25)
    colours = ScalarMappable(norm, COLOURS).to_rgba((levels[1:] + levels[:-1]) / 2)
    beside.barh(levels[:-1], 1, np.diff(levels), align="edge", color=colours, edgecolor=colours, linewidth=0.5)
    beside.set_xlim(0, 1)
    beside.set_ylim(levels[0], levels[-1])
    beside.set_xticks([])
    for spine in beside.spines.values():
        spine.set_visible(False)
    beside.yaxis.tick_right()
    beside.yaxis.set_major_locator(MaxNLocator(5))
    beside.yaxis.set_major_formatter(PERCENT)
    beside.tick_params(color=SOFT, labelcolor=SOFT, labelsize=10, length=0, pad=4)
    beside.set_title("%", color=SOFT, fontsize=10, pad=8)
