"""How fast networks are, and which of them no other is better than in both speed and accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from igkd.base.schema import typed


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A network's size, and its speed on one machine."""

    network: str
    """Its name."""
    candidate: bool
    """Whether it is one of those that are searched, not the one they are compared with."""
    parameters: int
    multiply_adds: int
    milliseconds: float
    """Median of a pass of one image."""
    times_as_fast: float
    """As the teacher in the same runtime; the median over rounds."""
    times_as_fast_as_eager: float
    """As the teacher by torch in float32, as it is."""


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """What OUT/latencies.json holds; what was timed on another machine is timed anew."""

    machine: str
    rounds: int
    """Turns of each, of 5 passes."""
    load: tuple[float, ...]
    """Average of processes at work in the minute before each group of networks was timed."""
    budget: float
    networks: list[dict[str, Any]]
    provenance: dict[str, Any]

    @property
    def measured(self) -> list[Measured]:
        return [typed(Measured, one) for one in self.networks]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other one is better than: as good in both coordinates, of which more is better, and better in one.

    Args:
        points: finite numbers. Equal points do not spoil one another.
    """
    kept, best, level = [False] * len(points), float("-inf"), float("-inf")
    for place in sorted(range(len(points)), key=lambda i: points[i], reverse=True):
        first, second = points[place]
        # From the greatest first coordinate down, a point has to be higher than all before it, or be the same as the last that was.
        if second > best or (second == best and first == level):
            kept[place], best, level = True, second, first
    return kept
