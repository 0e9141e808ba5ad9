"""Figures as the README and the guides quote them, and whether a text does."""

import functools
import json
from collections.abc import Iterable
from typing import Any

from igkd.evaluation.comparisons import Group, Measure, families, grouped
from igkd.evaluation.significance import Comparison
from tests.helpers.paths import ROOT

RESULTS = ROOT / "results"
MEASURED, JOBS, EVIDENCE = "docs/measured.md", "docs/jobs.md", "docs/evidence.md"
Quote = tuple[str, str]
"""A document, and what it has to say."""


def read(name: str) -> Any:
    text = (RESULTS / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)


def share(value: float) -> str:
    """A share, in per cent with one decimal."""
    return f"{100 * value:z.1f}"


def ends(low: float, high: float) -> str:
    """An interval."""
    return f"{share(low)} to {share(high)}"


def difference(found: Comparison) -> str:
    """A difference in points."""
    return f"{100 * found.difference:+z.1f}"


def compared(name: str, measure: Measure) -> tuple[dict[str, Group], dict[tuple[str, str], Comparison]]:
    """The groups of a sweep by label, and its comparisons by both labels."""
    groups = grouped(read(name), measure)
    found = [comparison for family in families(groups) for comparison in family.comparisons]
    return {group.label: group for group in groups}, {(one.arm, one.reference): one for one in found}


@functools.cache
def text(document: str) -> str:
    """With single spaces for its line breaks."""
    return " ".join((ROOT / document).read_text().split())


def check(quotes: Iterable[Quote]) -> None:
    """Fail with all that the documents do not say."""
    wrong = [f"{document} does not say: {words}" for document, words in quotes if words not in text(document)]
    assert not wrong, "\n".join(wrong)
