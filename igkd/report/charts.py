"""The pictures of a report: turns arrays into PNG data URIs, and numbers into inline SVG.

The SVG names its colours as CSS variables of the page that holds it (`CSS_COLOURS`), so one drawing serves light, dark and
print; its text is text, in the page's font.
"""

import base64
import io
import math
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import convolve1d

INK, SOFT, RULE = "#1a1a1a", "#666666", "#d9d9d9"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK, "#f0e442")
"""Okabe and Ito's colours, which colour-blind readers can distinguish; `INK` stands for their black."""

CSS_COLOURS = {**{colour: f"c{place}" for place, colour in enumerate(PALETTE)}, INK: "ink", SOFT: "soft", RULE: "rule"}
"""Colour in a drawing -> the CSS variable that replaces it."""

MARKERS = "osD^vP*X"
DASHED = (0, (3.5, 2))
WIDTH = 5.0
"""Width of a chart in inches: 10-point text is still legible when a phone shrinks it."""

LABEL = 26
"""Most characters of an arm's name beside a chart."""

SMOOTHED = 64
"""Least shorter side in pixels of a map that is blurred: in smaller pictures what matters is often four pixels wide itself."""

LONGEST = 96
"""Longest side of a gallery's pictures in pixels; larger ones are shrunk."""


def image_uri(image: NDArray[Any], longest: int = LONGEST) -> str:
    """A PNG data URI, at most `longest` pixels a side, of an RGB picture (H, W, 3), uint8 or float in [0, 1]."""
    if image.dtype != np.uint8:
        image = (np.nan_to_num(image.astype(np.float64)).clip(0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((longest, longest), Image.Resampling.BOX)
    return _png(picture)


def map_uri(values: NDArray[Any], longest: int = LONGEST) -> str:
    """A PNG data URI, at most `longest` pixels a side, of a map (H, W).

    It is dark at the map's minimum, bright from its 99th percentile on, and grey where it is not finite. A constant map is dark. One of at
    least `SMOOTHED` pixels a side is blurred before.
    """
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float32)
    picture = Image.fromarray(without_grid(values) if min(values.shape) >= SMOOTHED else values)
    picture.thumbnail((longest, longest), Image.Resampling.BOX)
    values = np.asarray(picture, dtype=np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), np.quantile(values[finite], 0.99)) if finite.any() else (0.0, 0.0)
    if high <= low and finite.any():
        high = values[finite].max()  # the 99th percentile is the minimum: fewer than 1 % of the pixels are larger
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    levels = np.where(finite, np.nan_to_num(scaled).clip(0, 1) * 254, 255).round().astype(np.uint8)
    colours = matplotlib.colormaps["inferno"](np.linspace(0, 1, 255))[:, :3]
    indexed = Image.fromarray(levels).convert("P")
    indexed.putpalette([*(colours * 255).round().astype(np.uint8).ravel().tolist(), 128, 128, 128])
    return _png(indexed)


def without_grid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map (H, W) without the grid that a first layer of stride 2, and a pooling of stride 2 behind it, draw into gradients.

    A pixel becomes a mean of the five around it, along each axis, with weights whose frequency response is 0 at periods of 2 and 4
    pixels, those of such grids. What is not finite stays so.
    """
    smooth: NDArray[np.float32] = np.nan_to_num(values)
    for axis in (0, 1):
        smooth = convolve1d(smooth, np.array([1, 2, 2, 2, 1]) / 8, axis=axis, mode="nearest")
    return np.where(np.isfinite(values), smooth, values)


def outline(mask: NDArray[np.bool_]) -> str:
    """Data of an SVG path along the border of a mask (H, W), in a view box of W by H: every pixel edge between inside and outside."""
    padded = np.pad(mask.astype(bool), 1)
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    return "".join([f"M{x} {y}v1" for y, x in upright] + [f"M{x} {y}h1" for y, x in level])


def curves(
    lines: dict[str, dict[int, list[float]]], teacher: float | None = None, name: str = "curves", places: Sequence[int] | None = None
) -> str:
    """Accuracy by epoch as SVG: for each label a line with the mean, in a band from minimum to maximum.

    Args:
        lines: label -> epoch -> the accuracies of its seeds, in the order of the palette.
        teacher: an accuracy to draw as a dashed line.
        name: start of the drawing's ids; must differ between drawings of one page.
        places: indices of the lines' colours in the palette; by default 0, 1, 2, ...
    """
    longest = max((len(label) for label in lines), default=0)
    figure, axes = chart(height=max(2.3, 0.2 * (len(lines) + 1)), left=0.09, right=1 - (34 + 5.4 * min(longest, LABEL)) / (72 * WIDTH))
    ends: list[tuple[float, str, int]] = []
    for place, (label, points) in zip(range(len(lines)) if places is None else places, lines.items(), strict=True):
        epochs, values = list(points), list(points.values())
        mean = [float(np.mean(v)) for v in values]
        axes.plot(epochs, mean, linewidth=1.6, markersize=4, markevery=max(1, len(epochs) // 12), **pen(place))
        if any(len(v) > 1 for v in values):
            band = [min(v) for v in values], [max(v) for v in values]
            axes.fill_between(epochs, *band, color=PALETTE[place % len(PALETTE)], alpha=0.16, linewidth=0)
        ends.append((mean[-1] if math.isfinite(mean[-1]) else 0.0, label, place))
    if teacher is not None:
        axes.axhline(teacher, color=SOFT, linewidth=1, linestyle=DASHED, zorder=0)
        ends.append((teacher, "teacher", -1))
    axes.margins(x=0.02, y=0.06)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch", color=SOFT, fontsize=10)
    axes.set_title("validation accuracy, %", loc="left", color=SOFT, fontsize=10, pad=8)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    label_ends(axes, sorted(ends))
    return svg(figure, name)


def bars(rows: Sequence[tuple[str, float, float, float]], colours: Sequence[int | None], reference: float | None = None) -> str:
    """Shares in [0, 1] as SVG: for every (label, share, low, high) a bar with a whisker from low to high, from top to bottom.

    Args:
        colours: indices into the palette; None is `INK`, for rows that are not arms.
        reference: a share to draw as a dashed line through all bars.
    """
    longest = max((len(row[0]) for row in rows), default=0)
    figure, axes = chart(height=0.3 * len(rows), left=(12 + 5.4 * min(longest, LABEL)) / (72 * WIDTH), right=0.93)
    for place, ((_, share, low, high), colour) in enumerate(zip(rows, colours, strict=True)):
        axes.barh(place, share, height=0.62, color=SOFT if colour is None else PALETTE[colour % len(PALETTE)], alpha=0.75)
        axes.plot([low, high], [place, place], color=INK, linewidth=1.4, marker="|", markersize=7)
        top = np.nanmax([share, high, 0.0])
        text = f"{100 * share:.0f}" if math.isfinite(share) else "no value"
        axes.annotate(text, (float(top), place), (6, 0), textcoords="offset points", va="center", color=INK, fontsize=10)
    if reference is not None and math.isfinite(reference):
        axes.axvline(reference, color=SOFT, linewidth=1, linestyle=DASHED)
    axes.set_yticks(range(len(rows)), [plain(row[0]) for row in rows], parse_math=False)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
    axes.set_title("map mass inside the mask, %", loc="left", color=SOFT, fontsize=10, pad=8)
    return svg(figure, "focus")


def chart(height: float, left: float, right: float) -> tuple[Figure, Axes]:
    """An empty chart whose axes are `height` inches tall, with space for one line of text above and two below."""
    figure = Figure(figsize=(WIDTH, height + 0.75), dpi=72)
    axes = figure.add_axes((left, 0.45 / (height + 0.75), right - left, height / (height + 0.75)))
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(SOFT)
    axes.tick_params(color=SOFT, labelcolor=SOFT, labelsize=10, length=0, pad=5)
    return figure, axes


def pen(place: int) -> dict[str, Any]:
    """Colour, marker and dash of a line: all different for the first 24 lines; the first eight differ in more than colour."""
    dash = ("-", (0, (5, 2)), (0, (1.5, 1.5)))[place // len(PALETTE) % 3]
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)], "linestyle": dash}


def label_ends(axes: Axes, ends: list[tuple[float, str, int]]) -> None:
    """Write labels to the right of the axes, moved apart where they would overlap; `ends` has (height, label, index of the colour)."""
    if not ends:
        return
    bottom, top = axes.get_ylim()
    gap = (top - bottom) * 14 / axes.get_window_extent().height  # 14 points is the height of a line of text
    heights = [height for height, _, _ in ends]
    for _ in range(200):
        heights[0], heights[-1] = max(heights[0], bottom), min(heights[-1], top)
        for i in range(1, len(heights)):
            excess = max(0.0, gap - (heights[i] - heights[i - 1])) / 2
            heights[i - 1], heights[i] = heights[i - 1] - excess, heights[i] + excess
    for height, (_, label, place) in zip(heights, ends, strict=True):
        beside = axes.get_yaxis_transform()
        drawn = pen(place) if place >= 0 else {"color": SOFT, "linestyle": DASHED}
        axes.plot([1.015, 1.055], [height] * 2, transform=beside, clip_on=False, linewidth=1.6, markersize=4, markevery=[1], **drawn)
        axes.text(1.075, height, plain(label), transform=beside, va="center", color=INK, fontsize=10, parse_math=False)
    axes.set_ylim(bottom, top)


def plain(label: str) -> str:
    """A label of at most `LABEL` characters, all printable (XML allows no others)."""
    return squeezed("".join(letter if letter.isprintable() else " " for letter in label), LABEL)


def squeezed(text: str, longest: int) -> str:
    """Shorten a label in its middle, since labels of one sweep differ at their ends."""
    head = longest // 3
    return text if len(text) <= longest else f"{text[:head]}…{text[len(text) - longest + head + 1 :]}"


def svg(figure: Figure, name: str) -> str:
    """Convert a figure to inline SVG: colours as CSS variables, ids that start with `name`, no style sheet, metadata or namespace."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
        element.attrib = {key.split("}")[-1]: _attribute(key, value, name) for key, value in element.attrib.items()}
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib["aria-hidden"] = "true"  # the element around it has the description
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    value = re.sub(r"(?<=url\()#", f"#{name}-", f"#{name}-{value[1:]}" if key.endswith("href") else value)
    return re.sub(r"#[0-9a-f]{6}\b", lambda hit: f"var(--{CSS_COLOURS[hit[0]]})" if hit[0] in CSS_COLOURS else hit[0], value)


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
