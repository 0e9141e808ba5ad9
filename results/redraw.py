"""Redraws the tables of the evidence in README.md and docs/evidence.md from the rows in this directory.

    python results/redraw.py          writes what has changed
    python results/redraw.py --check  writes nothing; ends with status 1 if a table is not that of the rows

A table stands in a document between two comments, of which the first says what it is of:

    <!-- rows: evidence/wide/rows.jsonl -->
    ...
    <!-- end of rows -->

In docs/evidence.md that is a sweep: its table, and the sentences on its differences. In README.md it is `evidence`, whose lines are below.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from statistics import fmean
from typing import Any

from igkd.evaluation.comparisons import Group, families, grouped
from igkd.evaluation.significance import wilson_interval

HERE = Path(__file__).parent
DOCUMENTS = (HERE.parent / "README.md", HERE.parent / "docs" / "evidence.md")
BLOCK = re.compile(r"(<!-- rows: (\S+) -->\n).*?(<!-- end of rows -->)", re.DOTALL)
LATENCY = "evidence/latency.json"
"""Of int8 files, one image, one thread: the networks of the table by the files' names."""
PAPER = (("teacher", 2_236_682, "93.9", "teacher"), ("cut 5, kd+ig, mean of ten", 543_498, "92.0", "cut5"))
"""As published: what, parameters, test accuracy in per cent; and the file of this network."""
TEACHER = ("evidence/wide/teacher.json", "assets/cifar10-airbench", "airbench96")
SWEEPS = (("evidence/long/rows.jsonl", "student"), ("evidence/cut5/rows.jsonl", "cut5"), ("evidence/fast/rows.jsonl", "fast"))
"""The longest runs of each network, and the file of this network."""
SEEDS = {1: "one seed"}


def percent(*shares: float) -> str:
    """Shares in per cent with one decimal, as a range if there are two."""
    return " to ".join(f"{100 * share:z.1f}" for share in shares)


def read(name: str) -> Any:
    """The rows of a .jsonl file, or the row of a .json file."""
    text = (HERE / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def of_images(row: Mapping[str, Any]) -> tuple[str, str]:
    """Accuracy of a single run, and its interval over the test images."""
    test = row["test"]
    return percent(test["accuracy"]), percent(*wilson_interval(test["correct"], test["count"]))


def evidence() -> Iterator[str]:
    """README's table: the paper's networks, our teacher and its students."""
    timed = {PurePath(row["model"]).stem: row for row in read(LATENCY)["latency"]}

    def latency(file: str) -> str:
        return f"{timed[file]['p50']:.2f} ({timed[file]['times_as_fast']:.1f})"

    yield line("CIFAR-10", "parameters", "test accuracy, %", "95 % interval", "int8, ms (times as fast as the paper's teacher)")
    yield "|---|---|---|---|---|"
    for what, parameters, accuracy, file in PAPER:
        yield f"| paper: {what} | {parameters:,} | {accuracy} | | {latency(file)} |"
    teacher = read(TEACHER[0])
    yield line(f"here: teacher, `{TEACHER[1]}`", f"{teacher['parameters']:,}", *of_images(teacher), latency(TEACHER[2]))
    for name, file in SWEEPS:
        for group in sorted(grouped(read(name), "test"), key=lambda one: -one.interval[0]):
            mean, low, high = group.interval
            arm = "student alone" if group.first["arm"] == "student" else group.first["arm"]
            often = SEEDS.get(len(group.by_seed), f"mean of {len(group.by_seed)} seeds")
            what = f"here: `{group.first['network']}`, {arm}, {often}, {group.first['config']['epochs']} epochs"
            yield line(what, f"{group.first['parameters']:,}", percent(mean), percent(low, high), latency(file))


def sweep(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sweep's table, and the sentences on its differences."""
    groups = grouped(rows, "test")
    several = any(len(group.by_seed) > 1 for group in groups)
    names = ["test accuracy, %", f"95 % interval{'' if several else ', over the test images'}", "seeds", "agreement with the teacher, %"]
    names += ["cosine to its maps (another image's)", "deletion", "insertion"]
    yield f"| {line(*names)}"
    yield "|---" * (1 + len(names)) + "|"
    recipe = f", {PurePath(str(rows[0]['recipe'])).stem}"
    for group in groups:
        yield line(*cells(group, recipe))
    sentences = [f"- {found.sentence.replace(recipe, '')}." for family in families(groups) for found in family.comparisons]
    if sentences and several:
        tests = "paired t-tests over the seeds, with Holm's correction" if len(sentences) > 1 else "a paired t-test over the seeds"
        yield from ("", f"By {tests}:", "")
        yield from sentences


def cells(group: Group, recipe: str) -> Iterator[str]:
    """A group's line in a sweep's table."""
    mean, low, high = group.interval
    tests = [row["test"] for row in group.rows]
    cosines = [one["maps"]["cosine"] for one in tests]
    cosine, control = (fmean(one[name] for one in cosines) for name in ("mean", "control"))
    yield from (group.label.removesuffix(recipe), percent(mean), percent(low, high), str(len(group.by_seed)))
    yield from (percent(fmean(one["agreement"] for one in tests)), f"{cosine:.2f} ({control:.2f})")
    yield from (f"{fmean(one['maps']['student'][kind]['area'] for one in tests):.2f}" for kind in ("deletion", "insertion"))


def redrawn(text: str) -> str:
    """A document with its tables as the rows have them."""

    def block(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        lines = evidence() if name == "evidence" else sweep(read(name))
        return "\n".join([begin.rstrip("\n"), "", *lines, "", end])

    return BLOCK.sub(block, text)


def main() -> int:
    """Redraw all documents; gives the exit status."""
    changed = [path for path in DOCUMENTS if redrawn(path.read_text()) != path.read_text()]
    for path in changed:
        if "--check" in sys.argv[1:]:
            print(f"{path.name}: a table is not that of the rows; python results/redraw.py redraws it")
        else:
            path.write_text(redrawn(path.read_text()))
            print(f"{path.name}: redrawn")
    return 1 if changed and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
