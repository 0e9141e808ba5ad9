"""The rows of a sweep in groups of repeats, and the questions asked of them.

Rows of one arm, network and share are repeats, one a seed; where a sweep also varies settings, these tell groups apart, too. What
differs in its settings is never averaged.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from statistics import fmean, stdev
from typing import Any, Literal

from statsmodels.stats.multitest import multipletests

from igkd.base.choices import MAP_PARTS, parts_of
from igkd.base.settings import kinds
from igkd.config.distill import DistillConfig
from igkd.evaluation.significance import ALPHA, Comparison, compare, t_interval, wilson_interval

Measure = Literal["test", "validation"]

NO_SETTINGS = frozenset(name for name, kind in kinds(DistillConfig).items() if kind != "learning")
"""Entries of a configuration that do not say how a run learns."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Repeats of one thing."""

    label: str
    """Unique among groups that are shown together."""
    arm: str
    """The label without the network, the same across networks."""
    rows: Sequence[Mapping[str, Any]]
    measure: Measure

    @property
    def first(self) -> Mapping[str, Any]:
        return self.rows[0]

    @property
    def base(self) -> str:
        """What it learns from, without control and recipe: kd+ig; or kd+ig, gradcam, if its maps are not the usual ones."""
        explanation = self.first.get("config", {}).get("explanation", "ig")
        return self._arm if explanation == "ig" or not self._uses_maps else f"{self._arm}, {explanation}"

    @property
    def _arm(self) -> str:
        return str(self.first["arm"])

    @property
    def _uses_maps(self) -> bool:
        return not MAP_PARTS.isdisjoint(parts_of(self._arm))

    @property
    def recipe(self) -> str:
        return str(self.first.get("recipe", "paper"))

    @property
    def own(self) -> bool:
        """Whether it is a method, not a control."""
        return self.first.get("content", "own") == "own" or not self._uses_maps

    @property
    def undone(self) -> bool:
        """Whether it is a recipe without one of its choices."""
        return bool(self.first.get("without"))

    @property
    def network(self) -> str:
        """The name of their network."""
        return str(self.first["network"])

    @property
    def compression(self) -> float:
        return float(self.first.get("compression", math.nan))

    @property
    def by_seed(self) -> dict[int, float]:
        """Accuracies that are numbers."""
        found = {int(row["seed"]): accuracy(row, self.measure) for row in self.rows}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    @property
    def interval(self) -> tuple[float, float, float]:
        """Mean accuracy and its 95 % interval: over seeds where there are several, else over images."""
        values = list(self.by_seed.values())
        if len(values) > 1:
            return t_interval(values)
        if not values:
            return math.nan, math.nan, math.nan
        row = next(row for row in self.rows if math.isfinite(accuracy(row, self.measure)))
        count = images(row, self.measure)
        return values[0], *(wilson_interval(round(values[0] * count), count) if count else (math.nan, math.nan))

    @property
    def sd(self) -> float:
        values = list(self.by_seed.values())
        return stdev(values) if len(values) > 1 else math.nan

    @property
    def mean(self) -> float:
        values = list(self.by_seed.values())
        return fmean(values) if values else math.nan

    @property
    def digits(self) -> int:
        """Decimals of an accuracy in per cent: none that a single image could not move."""
        return 2 if images(self.first, self.measure) >= 10_000 else 1


@dataclass(frozen=True, kw_only=True)
class Family:
    """A question, and all comparisons that answer it: Holm's correction is for these together."""

    question: str
    pairs: list[tuple[Group, Group]]
    comparisons: list[Comparison]
    """One a pair: first against second."""


def accuracy(row: Mapping[str, Any], measure: Measure) -> float:
    """Accuracy of a run, or NaN where it has none: on the test set, or on the validation split after the last epoch."""
    if measure == "test":
        return _number(row.get("test", {}).get("accuracy"))
    return _number(row["history"][-1].get("validation_accuracy")) if row.get("history") else math.nan


def images(row: Mapping[str, Any], measure: Measure) -> int:
    """How many images that accuracy is of; 0 where the row does not say."""
    found = row.get("test", {}).get("count") if measure == "test" else (row.get("images") or {}).get("validation")
    return int(found or 0)


def history(row: Mapping[str, Any]) -> dict[int, float]:
    """Epoch to validation accuracy."""
    return {int(entry["epoch"]): _number(entry.get("validation_accuracy")) for entry in row.get("history", [])}


def settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """How a run learns; of a list of numbers, each by itself."""
    found: dict[str, Any] = {}
    for key, value in row.get("config", {}).items():
        if key in NO_SETTINGS:
            continue
        if isinstance(value, list | tuple):
            found |= {f"{key} {i}": entry for i, entry in enumerate(value, 1)}
        else:
            found[key] = value
    return found


def varied(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same in all rows, in order of appearance."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in settings(row).items():
            values.setdefault(key, set()).add(repr(value))
    return [key for key, found in values.items() if len(found) > 1]


def grouped(rows: Sequence[Mapping[str, Any]], measure: Measure) -> list[Group]:
    """Groups in order of appearance.

    Raises:
        ValueError: two results of one seed that differ in no setting: they are no independent repeats.
    """
    # Arms differ in settings by recipe; what varies within a recipe's arm and network is what the sweep varies.
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((str(row["name"]), str(row["network"])), []).append(row)
    names = {kind: varied(members) if _repeats(members) else [] for kind, members in kinds.items()}
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        own = settings(row)
        label = ", ".join([str(row["name"]), *(f"{name} {own.get(name)}" for name in names[str(row["name"]), str(row["network"])])])
        found.setdefault((label, str(row["network"])), []).append(row)
    for (label, network), members in found.items():
        if _repeats(members):
            raise ValueError(f"arm {label} of network {network} holds two results of one seed: they are no independent repeats")
    one_network = len({network for _, network in found}) == 1
    groups = [Group(label=arm, arm=arm, rows=members, measure=measure) for (arm, _), members in found.items()]
    return groups if one_network else [replace(group, label=f"{group.arm}, {group.network}") for group in groups]


def families(groups: Sequence[Group]) -> list[Family]:
    """The questions to a recipe, each over all its networks: whether the methods help, whether the controls do, whether the map matters,
    and whether each of its choices earns its place."""
    found = []
    for recipe in dict.fromkeys(group.recipe for group in groups):
        members = [group for group in groups if group.recipe == recipe]
        suffix = "" if len({group.recipe for group in groups}) == 1 else f" Recipe {PurePath(recipe).stem}"
        methods = [group for group in members if group.own and not group.undone]
        controls = [group for group in members if not group.own]
        asked = {
            "Do the methods help?": _against(methods, members),
            "Does something else than the map help?": _against(controls, members),
            "Does it matter that the map is the image’s own?": [
                (own, control) for control in controls if (own := _partner(control, control.base, members)) is not None
            ],
            "Does each choice of the recipe earn its place?": [
                (whole, group) for group in members if group.undone and (whole := _partner(group, group.base, members)) is not None
            ],
        }
        found += [
            Family(question=question + suffix, pairs=pairs, comparisons=_compared(pairs)) for question, pairs in asked.items() if pairs
        ]
    return found


def _against(arms: Iterable[Group], members: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Each with student and kd of its recipe and network."""
    pairs = []
    for arm in arms:
        for base in ("student", "kd"):
            reference = _partner(arm, base, members)
            if arm.base != "student" and reference is not None and arm is not reference and arm.base != base:
                pairs.append((arm, reference))
    return pairs


def _compared(pairs: Sequence[tuple[Group, Group]]) -> list[Comparison]:
    """First against second of every pair, corrected for all of them."""
    found: dict[tuple[str, str], Comparison] = {}
    for network in dict.fromkeys(arm.network for arm, _ in pairs):
        # One call a network: each costs statsmodels a collection of garbage, a fifth of a second.
        members = {group.label: group for pair in pairs if pair[0].network == network for group in pair}
        for c in compare({label: group.by_seed for label, group in members.items()}, [g.label for g in members.values() if g.own]):
            found |= {(c.arm, c.reference): c, (c.reference, c.arm): _turned(c)}
    chosen = [found[arm.label, reference.label] for arm, reference in pairs]
    tested = [c.p for c in chosen if not math.isnan(c.p)]
    corrected = iter(multipletests(tested, ALPHA, method="holm")[1] if tested else [])
    return [replace(c, p_holm=math.nan if math.isnan(c.p) else float(next(corrected)), family=len(tested)) for c in chosen]


def _turned(c: Comparison) -> Comparison:
    """The same with arm and reference changing places."""
    return replace(c, arm=c.reference, reference=c.arm, difference=-c.difference, low=-c.high, high=-c.low, effect=-c.effect)


def _partner(group: Group, base: str, members: Sequence[Group]) -> Group | None:
    """The method `base` of the same network: of the same varied settings, or the only one there is."""
    found = [other for other in members if other.own and not other.undone and other.base == base and other.network == group.network]
    same = [other for other in found if _variant(other) == _variant(group)]
    return same[0] if same else found[0] if len(found) == 1 else None


def _variant(group: Group) -> str:
    return group.arm.removeprefix(str(group.first["name"]))


def _repeats(rows: Sequence[Mapping[str, Any]]) -> bool:
    return len({row["seed"] for row in rows}) < len(rows)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
