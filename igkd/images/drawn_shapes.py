"""A built-in data set: drawn shapes on a cluttered background, each with the mask of its object.

Use it where nothing can be downloaded, or to compare saliency maps with the truth: the mask says which pixels decide the
label. A picture is a pure function of (seed, split, index): there is no limit to their number, any of them can be redrawn
on any machine, and splits share no pictures. Only the outline decides the class: position, scale, rotation, stretch,
colours, textures and clutter are drawn from the same distributions for all ten, and no rotation or mirroring turns one
class into another.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

VERSION = 1
"""Increased whenever the pictures change; part of the data set's fingerprint."""

SUPERSAMPLE = 4
"""Outlines are rasterised this many times finer than the picture."""

Array = NDArray[np.float64]


def label(index: int) -> int:
    """Class of picture `index`, an index into `CLASSES`. The classes alternate, so that any ten consecutive pictures have all of them."""
    return index % len(CLASSES)


def draw(seed: int, split: str, index: int, size: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One picture and the mask of its object.

    Args:
        seed: the data set's seed.
        split: any name, such as "train" or "test".
        index: the picture's index in its split; `label(index)` is its class.
        size: side in pixels; another size gives the same scene at another resolution.

    Returns:
        RGB image, uint8 (size, size, 3), and mask, bool (size, size): the whole object, including parts covered by clutter.
    """
    rng = _generator(seed, split, index)
    outline = _place(rng, OUTLINES[CLASSES[label(index)]]())
    ground = rng.uniform(0.25, 0.75, 3)
    ink = _contrasting(rng, ground)
    contrast = float(np.abs(ink - ground).max())

    canvas = ground[:, None, None] + _texture(rng, size, contrast * rng.uniform(0.1, 0.7))
    for _ in range(rng.integers(1, 5)):
        canvas = _clutter(rng, canvas, reach=0.45)
    cover = _cover(outline, size)
    paint = ink[:, None, None] + _texture(rng, size, contrast * rng.uniform(0.0, 0.4))
    canvas = canvas + cover * (paint - canvas)
    for _ in range(rng.integers(0, 3)):
        canvas = _clutter(rng, canvas, reach=0.2)

    canvas = canvas + rng.normal(0.0, rng.uniform(0.01, 0.04), canvas.shape)  # last: the only draw that depends on the size
    image = (canvas.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(image), cover >= 0.5


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of one picture, the same in every process (unlike Python's `hash` of a string)."""
    digest = hashlib.sha256(f"{seed}/{index}/{split}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _place(rng: np.random.Generator, points: Array) -> Array:
    """Stretch, rotate, scale and move an outline; points (N, 2) come back inside the unit square."""
    points = _rotated(points, rng.uniform(0, 2 * np.pi)) * (1.0, rng.uniform(0.8, 1.0))
    points = _rotated(points, rng.uniform(0, 2 * np.pi))
    points = points - points.min(axis=0)
    scale = rng.uniform(0.4, 0.75) / float(points.max())
    margin = 0.03
    room = 1 - 2 * margin - points.max(axis=0) * scale
    placed: Array = points * scale + margin + rng.uniform(0, 1, 2) * room
    return placed


def _rotated(points: Array, angle: float) -> Array:
    """Points (N, 2) rotated about the origin by `angle` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    turned: Array = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _contrasting(rng: np.random.Generator, ground: Array) -> Array:
    """A colour (3,) lighter or darker than the ground's, (3,), by 0.25 (weak) to 0.7 (strong) where it differs most, before clipping."""
    way = rng.uniform(0.2, 1, 3)
    step = way / np.abs(way).max() * rng.uniform(0.25, 0.7)
    choices: list[Array] = [(ground + step).clip(0, 1), (ground - step).clip(0, 1)]
    return max(choices, key=lambda ink: float(np.abs(ink - ground).sum()))  # lighter or darker, whichever is clipped less


def _texture(rng: np.random.Generator, size: int, strength: float) -> Array:
    """A pattern in one tint: float64 (3, size, size), about -strength/2 to strength/2."""
    tint = rng.uniform(-1, 1, (3, 1, 1))
    texture: Array = 0.5 * strength * tint / np.abs(tint).max() * _pattern(rng, size)
    return texture


def _pattern(rng: np.random.Generator, size: int) -> Array:
    """Noise of three scales, a ramp, a grating or a chequerboard: float64 (size, size), about -1 to 1."""
    kind = rng.choice(["noise", "noise", "ramp", "grating", "checks"])
    pattern: Array = np.zeros((size, size))
    if kind == "noise":
        for cells in (3, 7, 15):
            grid = Image.fromarray(rng.normal(0, rng.uniform(0.1, 0.6), (cells, cells)).astype(np.float32))
            pattern += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
        return pattern
    angle, (phase_u, phase_v) = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 2)
    x = (np.arange(size) + 0.5) / size - 0.5
    u, v = np.cos(angle) * x - np.sin(angle) * x[:, None], np.sin(angle) * x + np.cos(angle) * x[:, None]
    if kind == "ramp":
        pattern = np.sqrt(2) * u
    elif kind == "grating":
        pattern = np.sin(2 * np.pi * rng.uniform(2, 9) * u + phase_u)
    else:
        waves = 2 * np.pi * rng.uniform(1, 4)
        pattern = np.tanh(4 * np.sin(waves * u + phase_u) * np.sin(waves * v + phase_v))
    return pattern


def _clutter(rng: np.random.Generator, canvas: Array, reach: float) -> Array:
    """Draw one piece of clutter (stroke, bent edge, fragment or blob) on a canvas (3, size, size), at most `reach` * size long."""
    length, half = reach * rng.uniform(0.4, 1.0), rng.uniform(0.015, 0.035)
    kind = rng.integers(4)
    if kind == 0:
        points = np.array([[-length / 2, -half], [length / 2, -half], [length / 2, half], [-length / 2, half]])
    elif kind == 1:
        angles = np.linspace(0, rng.uniform(0.5, 1.2) * np.pi, 10)
        points = np.concatenate([_circle(angles, length / 2 + half), _circle(angles[::-1], length / 2 - half)])
    elif kind == 2:
        points = rng.uniform(-0.4, 0.4, (3 + int(rng.integers(2)), 2)) * length
    else:
        points = _regular(12) * rng.uniform(0.1, 0.25, 2) * length
    points = _rotated(points, rng.uniform(0, 2 * np.pi)) + rng.uniform(0, 1, 2)
    cover = rng.uniform(0.5, 1.0) * _cover(points, canvas.shape[1])
    return canvas + cover * (rng.uniform(0.1, 0.9, (3, 1, 1)) - canvas)


def _cover(points: Array, size: int) -> Array:
    """Share of each pixel inside an outline (N, 2) in the unit square: float64 (size, size), 0 to 1."""
    sheet = Image.new("L", (size * SUPERSAMPLE,) * 2)
    ImageDraw.Draw(sheet).polygon((points * size * SUPERSAMPLE - 0.5).ravel().tolist(), fill=255)
    return np.asarray(sheet.reduce(SUPERSAMPLE), dtype=np.float64) / 255


def _circle(angles: Array, radius: float = 1.0) -> Array:
    """Points (N, 2) at these angles of a circle about the origin."""
    return radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)


def _regular(corners: int) -> Array:
    """A regular polygon with its first corner at the top (y = 1)."""
    return _circle(np.arange(corners) * 2 * np.pi / corners)


def _star() -> Array:
    points = _regular(10)
    points[1::2] *= 0.42
    return points


def _cross() -> Array:
    a = 0.32
    quarter = np.array([[a, a], [1, a], [1, -a]])
    return np.concatenate([_rotated(quarter, -turn * np.pi / 2) for turn in range(4)])


def _ring() -> Array:
    around = np.linspace(0, 2 * np.pi, 40)
    return np.concatenate([_circle(around), _circle(around[::-1], 0.52)])  # the two circles are joined by a slit of width 0


def _crescent() -> Array:
    """A large arc of a circle, closed from tip to tip by an arc of a slightly smaller circle."""
    angles = np.linspace(0.2 * np.pi, 1.8 * np.pi, 40)
    bite = _circle(np.linspace(1.7 * np.pi, 0.3 * np.pi, 40), np.sin(0.2 * np.pi) / np.sin(0.3 * np.pi))
    outer = _circle(angles)
    return np.concatenate([outer, bite + (outer[-1] - bite[0])])


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)], axis=1)


def _arrow() -> Array:
    right = np.array([[0, 1], [0.75, 0.15], [0.25, 0.15], [0.25, -1]])
    return np.concatenate([right, right[:0:-1] * (-1, 1)])


def _drop() -> Array:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([np.sin(t) * np.sin(t / 2) ** 1.5, np.cos(t)], axis=1)


OUTLINES: dict[str, Callable[[], Array]] = {
    "circle": lambda: _regular(40),
    "square": lambda: _regular(4),
    "triangle": lambda: _regular(3),
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _arrow,
    "drop": _drop,
}
"""Each class's outline: a closed polygon, float64 (N, 2), not yet scaled."""

CLASSES: tuple[str, ...] = tuple(OUTLINES)
