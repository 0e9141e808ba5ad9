"""The figures of the evidence in README and docs/evidence.md are those of the rows in results/; see test_figures.py."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from statistics import fmean

import pytest

from igkd.evaluation.comparisons import families, grouped
from igkd.evaluation.significance import t_interval, wilson_interval
from tests.helpers.figures import EVIDENCE, Quote, check, difference, ends, read, share
from tests.helpers.paths import ROOT


def evidence() -> Iterator[Quote]:
    teacher, rows = read("evidence/teacher.json")["test"], read("evidence/rows.jsonl")
    yield EVIDENCE, f"{share(teacher['accuracy'])} % of the test images"
    for family in families(grouped(rows, "test")):
        for found in family.comparisons:
            if (found.arm, found.reference) == ("kd+ig, short", "kd, short"):
                yield "README.md", f"kd+ig against kd alone {difference(found)} points (95 % interval {ends(found.low, found.high)})"


def first_pair() -> Iterator[Quote]:
    """Of airbench networks: one seed, so the intervals are over the test images."""
    teacher = read("evidence/airbench/teacher.json")
    test = teacher["test"]
    yield (
        EVIDENCE,
        f"{share(test['accuracy'])} % of the test images (validation {share(teacher['history'][-1]['validation_accuracy'])} %",
    )


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


def short_biases() -> Iterator[Quote]:
    """The same at a tenth of the length, and what students learn from either."""
    teachers = {row["network"]: row["test"]["accuracy"] for row in read("biases/teachers.jsonl")}
    there, without = teachers["airbench:32,128,128"], teachers["homogeneous:airbench:32,128,128"]
    yield EVIDENCE, f"{share(there)} % of the test images with biases, {share(without)} % without"
    yield EVIDENCE, f"worse by {share(there - without)} points taught nearly as well"
    groups = {arm: grouped(read(f"biases/students-{arm}.jsonl"), "test")[0] for arm in ("with", "without")}
    (mean, low, high), (other, lowest, highest) = groups["without"].interval, groups["with"].interval
    assert {len(group.by_seed) for group in groups.values()} == {3}
    yield EVIDENCE, f"without biases have {share(mean)} % (95 % interval {ends(low, high)}, 3 seeds)"
    yield EVIDENCE, f"those of the other {share(other)} % ({ends(lowest, highest)}): {share(other - mean)} points more"
    gains = [groups["with"].by_seed[seed] - accuracy for seed, accuracy in groups["without"].by_seed.items()]
    gain, least, most = t_interval(gains)
    assert least < 0 < most
    yield EVIDENCE, f"{share(gain)} points more (paired, 95 % interval {ends(least, most)})"
    agree = [share(fmean(row["test"]["agreement"] for row in groups[arm].rows)) for arm in ("without", "with")]
    yield EVIDENCE, f"on {agree[0]} and {agree[1]} % of the test images"
    yield EVIDENCE, f"`airbench:16,64,64` ({groups['with'].first['parameters']:,} parameters)"


def wide() -> Iterator[Quote]:
    """The best teacher so far, and its students."""
    teacher = read("evidence/wide/teacher.json")
    test, last = teacher["test"], teacher["history"][-1]
    accuracy, interval = share(test["accuracy"]), ends(*wilson_interval(test["correct"], test["count"]))
    ends_at = f"validation {share(last['validation_accuracy'])} %, training crops {share(last['train_accuracy'])} %"
    yield EVIDENCE, f"{accuracy} % of the test images (95 % interval over them {interval}; {ends_at})"


def longer() -> Iterator[Quote]:
    """Fifty epochs, more crops: above the paper's mean, which the interval excludes."""
    rows, (choice,) = read("evidence/long/rows.jsonl"), read("evidence/long/choice.jsonl")
    groups, paper = {group.first["arm"]: group for group in grouped(rows, "test")}, 0.9202
    group, rows = groups["kd"], list(groups["kd"].rows)
    mean, low, high = group.interval
    assert low > paper and len(group.by_seed) == 3
    yield "README.md", f"smaller than the paper's cut 5 has {share(mean - paper)} points more"
    teacher, drawn = read("evidence/wide/teacher.json")["test"], next(row for row in rows if row["seed"] == 0)["test"]
    yield "README.md", f"for the teacher of {share(teacher['accuracy'])} %, and for a student of {share(drawn['accuracy'])} %"
    parameters = group.first["parameters"]
    yield EVIDENCE, f"a student of {parameters:,} parameters has {share(mean)} % as a mean of 3 seeds, and the paper's of 543,498 has 92.0"
    validation = [row["history"][-1]["validation_accuracy"] for row in (choice, next(row for row in rows if row["seed"] == 0))]
    assert choice["seed"] == 0 and choice["config"]["cutout"] == 8 and validation[0] < validation[1]
    yield EVIDENCE, f"{share(validation[0])} % with it (`results/evidence/long/choice.jsonl`), {share(validation[1])} % without it"
    hours = sum(epoch["seconds"] for row in rows for epoch in row["history"]) / 3600
    yield EVIDENCE, f"{hours:.1f} hours of a processor for the 3 runs"
    before = next(group for group in grouped(read("evidence/wide/rows.jsonl"), "test") if group.first["arm"] == "kd")
    yield EVIDENCE, f"That is {share(mean - before.interval[0])} points above the students of 8 crops and 30 epochs"
    (found,) = (one for family in families(list(groups.values())) for one in family.comparisons)
    assert found.significant and (found.arm, found.reference) == ("kd, fifty", "student, fifty")
    yield "README.md", f"as long, has {share(found.difference)} points less (95 % interval {ends(found.low, found.high)}, 3 seeds each)"
    wide = next(group for group in grouped(read("evidence/wide/rows.jsonl"), "test") if group.first["arm"] == "student")
    yield EVIDENCE, f"gains {share(groups['student'].interval[0] - wide.interval[0])} points from 50 epochs instead of 30"
    yield EVIDENCE, f"{share(found.difference)} points of {share(mean)}, three seeds, significant, with 50 epochs"


def cut5() -> Iterator[Quote]:
    """The paper's student, and the same without its teacher: as long as seeds are few, said to be so."""
    rows = read("evidence/cut5/rows.jsonl")
    assert {(row["network"], row["config"]["epochs"], row["seed"]) for row in rows} == {("mobilenet:cut=5", 30, 0)} and len(rows) == 2
    kd, alone = ({row["config"]["arm"]: row for row in rows}[arm] for arm in ("kd", "student"))
    accuracies = [row["test"]["accuracy"] for row in (kd, alone)]
    accuracy, without = map(share, accuracies)
    said = f"has {accuracy} % here after 30 epochs, from the same stored logits, and {without} % without the teacher: one seed each"
    yield "README.md", f"The paper's own cut 5 {said}"
    yield EVIDENCE, f"cut 5 has {accuracy} % with a single seed"
    yield EVIDENCE, f"the paper's network of {kd['parameters']:,} parameters"
    hours = [f"{sum(epoch['seconds'] for epoch in row['history']) / 3600:.1f}" for row in (kd, alone)]
    yield EVIDENCE, f"One seed with the logits and one without, {' and '.join(hours)} hours of two cores, in part beside tests"
    gap = accuracies[0] - accuracies[1]
    yield EVIDENCE, f"the same network has {without} %: {share(abs(gap))} points {'less' if gap >= 0 else 'more'}. One seed of each"
    learned = [share(row["history"][-1]["train_accuracy"]) for row in (kd, alone)]
    yield EVIDENCE, f"Training crops are at {learned[0]} % with the logits, at {learned[1]} % without"


def fast() -> Iterator[Quote]:
    """A student for speed, at least 8 times as fast as the paper's teacher in the same runtime."""
    rows, other = read("evidence/fast/rows.jsonl"), read("evidence/long/rows.jsonl")[0]
    timed = {PurePath(row["model"]).stem: row for row in read("evidence/latency.json")["latency"]}
    assert timed["fast"]["times_as_fast"] >= 8 and timed["teacher"]["times_as_fast"] == 1
    yield EVIDENCE, f"the same {rows[0]['parameters']:,} parameters" if rows[0]["parameters"] == other["parameters"] else "no"
    adds, more = rows[0]["multiply_adds"] / 1e6, other["multiply_adds"] / 1e6
    yield EVIDENCE, f"({adds:.1f} million multiply-adds instead of {more:.1f})"
    yield EVIDENCE, f"{sum(epoch['seconds'] for row in rows for epoch in row['history']) / 3600:.1f} hours of a processor; the speeds are"
    learned = fmean(row["history"][-1]["train_accuracy"] for row in rows)
    yield EVIDENCE, f"Training crops are at {share(learned)} % on average"


def few() -> Iterator[Quote]:
    """From 2,700 training images; a difference is named in README as it was found."""
    groups = grouped(read("few/rows.jsonl"), "test")
    found = {}
    for family in families(groups):
        for one in family.comparisons:
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


@pytest.mark.parametrize("quotes", [evidence, first_pair, biases, short_biases, wide, longer, cut5, fast, few])
def test_figures_in_text_are_those_of_the_rows(quotes: Callable[[], Iterator[Quote]]) -> None:
    check(quotes())


def test_the_tables_are_those_of_the_rows(tmp_path: Path) -> None:
    """And one that is not is found: here, one with a line less."""
    for place in ("results", "docs"):
        shutil.copytree(ROOT / place, tmp_path / place)
    shutil.copy(ROOT / "README.md", tmp_path)
    command = [sys.executable, str(tmp_path / "results" / "redraw.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for document in (tmp_path / "README.md", tmp_path / "docs" / "evidence.md"):
        text = document.read_text()
        place = text.index("\n| kd |" if document.name == "evidence.md" else "\n| here: `airbench") + 1
        document.write_text(text[:place] + text[text.index("\n", place) + 1 :])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.count("a table is not that of the rows") == 2
    assert subprocess.run(command[:2], cwd=ROOT, capture_output=True).returncode == 0
    assert all((tmp_path / name).read_text() == (ROOT / name).read_text() for name in ("README.md", "docs/evidence.md"))
