"""Measured speed of networks, and the Pareto front of speed and accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from igkd.base.schema import typed


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A network's size, and its speed on one machine."""

    network: str
    """The network's name."""
    candidate: bool
    """Whether it is a candidate of the search, as opposed to the network that candidates are compared with."""
    parameters: int
    multiply_adds: int
    milliseconds: float
    """Median latency of one image."""
    times_as_fast: float
    """Speed relative to the teacher in the same runtime: the median over rounds."""
    times_as_fast_as_eager: float
    """Speed relative to the teacher run by torch in float32, not exported."""


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """The content of OUT/latencies.json. Latencies measured on another machine are measured again."""

    machine: str
    rounds: int
    """Rounds of 5 passes for each network."""
    load: tuple[float, ...]
    """The machine's load average over the minute before each group of networks was timed."""
    budget: float
    networks: list[dict[str, Any]]
    provenance: dict[str, Any]

    @property
    def measured(self) -> list[Measured]:
        return [typed(Measured, one) for one in self.networks]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each point is on the Pareto front: no other point is at least as large in both coordinates and larger in one.

    Args:
        points: finite numbers. Equal points do not exclude each other.
    """
    kept, best, level = [False] * len(points), float("-inf"), float("-inf")
    for place in sorted(range(len(points)), key=lambda i: points[i], reverse=True):
        first, second = points[place]
        # Points are sorted by falling first coordinate: one is on the front if its second exceeds all before, or if it equals the last.
        if second > best or (second == best and first == level):
            kept[place], best, level = True, second, first
    return kept
