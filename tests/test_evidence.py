"""The figures of the evidence in README and docs/evidence.md are those of the rows in results/; see test_figures.py."""

import statistics
from collections.abc import Callable, Iterator

import pytest

from igkd.evaluation.comparisons import Group, families, grouped
from igkd.evaluation.significance import wilson_interval
from tests.helpers.figures import EVIDENCE, Quote, check, difference, ends, read, share


def table_row(group: Group, recipe: str) -> str:
    """A group's line in the tables of docs/evidence.md, up to the columns that all of them have."""
    mean, low, high = group.interval
    tests = [row["test"] for row in group.rows]
    agreement, cosines = statistics.fmean(one["agreement"] for one in tests), [one["maps"]["cosine"] for one in tests]
    cosine, control = (statistics.fmean(one[name] for one in cosines) for name in ("mean", "control"))
    accuracy = f"{group.label.removesuffix(f', {recipe}')} | {share(mean)} | {ends(low, high)} | {len(group.by_seed)}"
    return f"| {accuracy} | {share(agreement)} | {cosine:.2f} ({control:.2f}) |"


def evidence() -> Iterator[Quote]:
    teacher, rows = read("evidence/teacher.json")["test"], read("evidence/rows.jsonl")
    yield EVIDENCE, f"{share(teacher['accuracy'])} % of the test images"
    groups = grouped(rows, "test")
    for group in groups:
        yield EVIDENCE, table_row(group, "short")
    for family in families(groups):
        for found in family.comparisons:
            yield EVIDENCE, f"- {found.sentence.replace(', short', '')}."
            if (found.arm, found.reference) == ("kd+ig, short", "kd, short"):
                yield "README.md", f"kd+ig against kd alone {difference(found)} points (95 % interval {ends(found.low, found.high)})"


def first_pair() -> Iterator[Quote]:
    """Of airbench networks: one seed, so the intervals are over the test images."""
    teacher, rows = read("evidence/airbench/teacher.json"), read("evidence/airbench/rows.jsonl")
    test = teacher["test"]
    yield (
        EVIDENCE,
        f"{share(test['accuracy'])} % of the test images (validation {share(teacher['history'][-1]['validation_accuracy'])} %",
    )
    for group in grouped(rows, "test"):
        yield EVIDENCE, table_row(group, "thirty")


def biases() -> Iterator[Quote]:
    """Two teachers by one command, but for the biases."""
    without, there = read("evidence/airbench/teacher.json"), read("evidence/airbench/teacher-with-biases.json")
    own = {"network", "out"}
    assert {k: v for k, v in without["config"].items() if k not in own} == {k: v for k, v in there["config"].items() if k not in own}
    for row, words in ((without, "of the test images (95 % interval {}, over the images)"), (there, "({})")):
        test = row["test"]
        yield "docs/decisions.md", f"{share(test['accuracy'])} % {words.format(ends(*wilson_interval(test['correct'], test['count'])))}"
    test = there["test"]
    interval = ends(*wilson_interval(test["correct"], test["count"]))
    yield EVIDENCE, f"has {share(test['accuracy'])} % of the test images (95 % interval over them {interval};"
    yield "docs/decisions.md", f"so {share(there['test']['accuracy'] - without['test']['accuracy'])} points more"


def wide() -> Iterator[Quote]:
    """The best teacher so far, and its students."""
    teacher, rows = read("evidence/wide/teacher.json"), read("evidence/wide/rows.jsonl")
    test, last = teacher["test"], teacher["history"][-1]
    accuracy, interval = share(test["accuracy"]), ends(*wilson_interval(test["correct"], test["count"]))
    yield "README.md", f"`assets/cifar10-airbench` | {teacher['parameters']:,} | {accuracy} | {interval} |"
    ends_at = f"validation {share(last['validation_accuracy'])} %, training crops {share(last['train_accuracy'])} %"
    yield EVIDENCE, f"{accuracy} % of the test images (95 % interval over them {interval}; {ends_at})"
    groups = grouped(rows, "test")
    for group in groups:
        (mean, low, high), arm, seeds = group.interval, group.first["arm"], len(group.by_seed)
        named, often = "student alone" if arm == "student" else arm, "one seed" if seeds == 1 else f"mean of {seeds} seeds"
        yield "README.md", f"{named}, {often}, 30 epochs | {group.first['parameters']:,} | {share(mean)} | {ends(low, high)} |"
        yield EVIDENCE, table_row(group, "thirty")
    for family in families(groups):
        for found in family.comparisons:
            yield EVIDENCE, f"- {found.sentence.replace(', thirty', '')}."


def few() -> Iterator[Quote]:
    """From 2,700 training images; a difference is named in README as it was found."""
    groups = grouped(read("few/rows.jsonl"), "test")
    for group in groups:
        curves = [row["test"]["maps"]["student"] for row in group.rows]
        deletion, insertion = (statistics.fmean(one[name]["area"] for one in curves) for name in ("deletion", "insertion"))
        yield EVIDENCE, f"{table_row(group, 'few40')} {deletion:.2f} | {insertion:.2f} |"
    found = {}
    for family in families(groups):
        for one in family.comparisons:
            yield EVIDENCE, f"- {one.sentence.replace(', few40', '')}."
            found[one.arm.removesuffix(", few40"), one.reference.removesuffix(", few40")] = one
    for pair, verb in ((("kd", "student"), "logits"), (("kd+map", "kd"), "maps as targets"), (("kd+map", "kd+map, other"), "own maps")):
        one = found[pair]
        yield "README.md", f"{verb} {difference(one)} points (95 % interval {ends(one.low, one.high)})"
    alone = next(group for group in groups if group.label.startswith("student")).interval[0]
    gain, lost = found["kd", "student"], found["kd+dkd", "kd"]
    assert gain.significant and lost.significant and not found["kd+map", "kd"].significant and not found["kd+ig", "kd"].significant
    yield EVIDENCE, f"{share(gain.difference)} points of {share(alone)} with 2,700 images, five seeds, significant"
    yield EVIDENCE, f"lost {share(-lost.difference)} points again"
    yield EVIDENCE, f"{share(-found['kd+ig', 'kd'].difference)} points below kd, not significant"


@pytest.mark.parametrize("quotes", [evidence, first_pair, biases, wide, few])
def test_figures_in_text_are_those_of_the_rows(quotes: Callable[[], Iterator[Quote]]) -> None:
    check(quotes())
