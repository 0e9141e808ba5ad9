import functools
import math
import re
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from scipy import stats

from igkd.evaluation.progress import progress
from igkd.report.pipeline_page import Latency
from igkd.report.sweep_charts import surface
from igkd.report.sweep_page import PUBLISHED, SweepReport, render
from igkd.report.sweep_table import markdown, summary_table
from tests.helpers.pages import HOSTILE, gallery_row
from tests.helpers.sweep_rows import SIZES, checked, row, sweep, trial, trials, tuning, words


@functools.cache
def full() -> SweepReport:
    rng = np.random.default_rng(1)
    arms = ("student", "kd", "ig", "kd+ig", "kd+ig, other", "kd+ig, black", "kd+ig, noise", "kd+ig, brightness, strong")
    rows = [
        row(arm, seed, 0.9 - 0.01 * place + rng.normal(0, 0.002), network=network)
        for place, network in enumerate(SIZES)
        for arm in arms
        for seed in (0, 1, 2)
    ]
    rows += [row(arm, seed, 0.8 + rng.normal(0, 0.01), share=0.8) for arm in ("student", "kd") for seed in range(20)]
    names = {"teacher": 9.0} | {f"student, {network}": 5.0 for network in SIZES}
    latency = [
        Latency(model=name, parameters=10, multiply_adds=100, batch=batch, threads=2, p50=time, p95=time, times_as_fast=1.0)
        for name, time in names.items()
        for batch in (1, 64)
    ]
    failures = [{"cell": "kd-cut9-seed4", "tries": 3, "error": "out of memory"}]
    return sweep(rows, failures=failures, progress=progress(rows, len(rows) + 1, failed=1), latency=latency, gallery=[gallery_row()])


def test_the_pages_stand_alone_and_describe_their_pictures() -> None:
    page = checked(full())
    assert len([1 for _, attributes in page.tags if attributes.get("class") == "chart"]) == 3 + 1 + 1 + 3 + 1
    page = checked(tuning())
    assert len([1 for _, attributes in page.tags if attributes.get("class") == "chart"]) == 3


def test_the_same_sweep_is_the_same_page() -> None:
    assert render(sweep()) == render(sweep()) and render(tuning()) == render(tuning())


def test_numbers_are_those_of_the_rows() -> None:
    kd, student = (0.91, 0.925, 0.92), (0.90, 0.905, 0.91)
    rows = [row(arm, seed, value) for arm, values in (("student", student), ("kd", kd)) for seed, value in enumerate(values)]
    page = checked(sweep(rows))
    low, high = stats.t.interval(0.95, 2, loc=fmean(kd), scale=stdev(kd) / math.sqrt(3))
    p = stats.ttest_rel(kd, student).pvalue  # one comparison: Holm's correction leaves it
    interval = f"{100 * low:.2f} \u2013 {100 * high:.2f}"
    assert page.row("kd")[1:6] == [f"{100 * fmean(kd):.2f}", interval, "3", f"{100 * (fmean(kd) - fmean(student)):+.2f}", f"{p:.3f}"]
    assert f"| kd | mobilenet:cut=5 | 4.12× | 91.83 | {interval} | 3 | +1.33 ({p:.3f}) | – |" in markdown(sweep(rows))
    assert summary_table(sweep(rows)).split()[-4:] == ["91.83", "%", f"{100 * low:.2f}-{100 * high:.2f}", "3"]
    chart = next(attributes["aria-label"] for _, attributes in page.tags if "dots" in (attributes.get("aria-label") or ""))
    assert chart is not None and "kd 91.83 %" in chart


def test_one_seed_has_its_binomial_interval_and_no_statement() -> None:
    low, high = stats.binomtest(9100, 10_000).proportion_ci(0.95, "wilson")
    page = checked(sweep([row("student", accuracy=0.9), row("kd", accuracy=0.91)]))
    assert page.row("kd")[1:4] == ["91.00", f"{100 * low:.2f} \u2013 {100 * high:.2f}", "1"]
    assert "kd and student share 1 seed: no statement is possible" in page.text


def test_hostile_text_is_text() -> None:
    def made(label: str) -> SweepReport:
        arm = {"name": label, "arm": label, "cell": label, "recipe": "paper"}
        rows = [row("kd", seed, 0.9) | arm for seed in (0, 1)] + [row("student", seed, 0.8) for seed in (0, 1)]
        rows += [row("kd", seed, 0.9, share=0.5) | arm for seed in (0, 1)]
        picture = gallery_row(label, label)
        failures = [{"cell": label, "tries": 2, "error": label}]
        return sweep(rows, title=label, note=label, failures=failures, gallery=[picture], commands=[label])

    plain, hostile = checked(made("kd")), checked(made(HOSTILE))
    assert [tag for tag, _ in hostile.tags if tag != "span"] == [tag for tag, _ in plain.tags if tag != "span"]
    assert {key for _, attributes in hostile.tags for key in attributes} == {key for _, attributes in plain.tags for key in attributes}
    assert hostile.text.count('<script>alert("x")</script>') > 8
    assert "<script" not in markdown(made(HOSTILE))
    piped = markdown(sweep([row("kd", cell="a") | {"name": "a|b\nc`"}]))
    assert "| a\\|b c\\` |" in piped


def test_hostile_settings_of_a_tuning_are_text() -> None:
    rows = [trial(i, 0.5 + 0.01 * i, **{HOSTILE: f"{HOSTILE}{i}"}) for i in range(12)]
    page = checked(tuning(rows, best={HOSTILE: HOSTILE}))
    assert page.text.count("alert") > 5


def test_failures_come_first() -> None:
    report = sweep(failures=[{"cell": "kd-seed4", "tries": 3, "error": "out of memory"}], progress="6 of 8 runs finished, 1 failed")
    text = words(report)
    assert text.index("kd-seed4") < text.index("out of memory") < text.index("A note") < text.index("What may be said")
    assert "6 of 8 runs finished, 1 failed" in text
    assert "Failures" not in words(sweep())


@pytest.mark.parametrize("kind", ["ablation", "tuning"])
def test_of_what_is_missing_nothing_is_said_but_how_far_the_sweep_is(kind: Any) -> None:
    empty = sweep([], kind=kind, teacher=None, progress="0 of 4 runs finished", commands=[])
    text = " ".join(checked(empty).text.split())
    assert "0 of 4 runs finished" in text and "No run has reached an epoch" in text
    assert not re.search("What the models look at|Size and speed|Accuracy against|Accuracy by compression|Shares of", text)
    assert markdown(empty) and len(summary_table(empty).splitlines()) == 3
    if kind == "ablation":
        assert "No run on the whole training set is done" in text
    else:
        assert "No trial has finished" in text and "there are 0" in text


@pytest.mark.parametrize("kind", ["ablation", "tuning"])
@pytest.mark.parametrize(
    "rows",
    [
        [row()],
        [row(test=False)],
        [trial(i, 0.5, state="pruned", alpha=0.1 * i, temperature=float(i)) for i in range(8)],
        [row(seed=seed, accuracy=math.nan) for seed in (0, 1)],
        [row(seed=0, accuracy=math.nan), row(seed=1), row("student", 1, 0.8)],
        [row(history=[])],
        [row(history=[], test=False)],
        [
            row(f"kd+ig, other, a recipe with a long name {i}", seed, 0.9, network=network)
            for i in range(40)
            for seed in (0, 1)
            for network in ("mobilenet:cut=5", "mobilenet:cut=9")
        ],
        [row(seed=seed, share=0.5) for seed in range(3)],
        [trial(i, 0.8, alpha=0.1 * (i % 2 + 1), temperature=2.0) for i in range(12)],
        [trial(i, 0.8, alpha=0.0 if i % 2 else 0.5, temperature=float(i)) for i in range(12)],
        [trial(i, 0.5 + 0.01 * i, alpha=0.1 * i, temperature=0.2 * i) for i in range(1, 12)],
    ],
)
def test_odd_rows_are_drawn(kind: Any, rows: list[dict[str, Any]]) -> None:
    if kind == "ablation" and rows[0]["cell"].startswith("trial") and rows[0]["state"] == "done":
        rows = [one | {"seed": seed} for seed, one in enumerate(rows)]
    report = sweep(rows, kind=kind, best=None)
    checked(report)
    markdown(report)
    assert max(map(len, summary_table(report).splitlines())) <= 80


def test_runs_without_an_accuracy_are_named_and_left_out() -> None:
    rows = [row("kd", 0, math.nan), row("kd", 1, 0.9), row("kd", 2, 0.92), *(row("student", seed, 0.8) for seed in (0, 1, 2))]
    page = checked(sweep(rows))
    assert "Without an accuracy, and in no mean: kd-mobilenet:cut=5-seed0." in page.text
    assert page.row("kd")[1] == "91.00" and page.row("kd")[3] == "2 of 3" and page.row("kd")[4] == "+11.00"


def test_pruned_runs_are_in_no_mean() -> None:
    rows = [row("kd", 0, 0.9), row("kd", 1, 0.92), row("kd", 2, 0.1, state="pruned")]
    page = checked(sweep(rows))
    assert page.row("kd")[1] == "91.00" and "2 of 3 runs finished, 1 stopped early" in page.text


def test_chance_is_not_success_and_equal_seeds_have_no_interval() -> None:
    rows = [row(arm, seed, accuracy, classes=10) for arm, accuracy in (("student", 0.1), ("kd", 0.9)) for seed in (0, 1, 2)]
    said = "near chance (10.0% with 10 classes): student; its accuracy says nothing about learning"
    report = sweep(rows)
    assert said in summary_table(report) and said[4:] in words(report) and said.split(": ")[1] in markdown(report)
    assert checked(report).row("kd")[2] == "– – –" and "90.00 %            –-–" in summary_table(report)
    assert "near chance" not in summary_table(sweep(rows[3:])) + words(sweep(rows[3:]))
    assert "near chance" in summary_table(tuning([trial(0, 0.1) | {"classes": 10}]))


def test_a_run_that_diverged_is_named() -> None:
    sizes = ("parameters", "multiply_adds", "compression", "images", "test", "provenance")
    bare = {key: value for key, value in row("kd", 2, 0.1, state="diverged").items() if key not in sizes}
    page = checked(sweep([row("kd", 0, 0.9), row("kd", 1, 0.92), bare]))
    assert page.row("kd")[1] == "91.00" and "2 of 3 runs finished, 1 diverged" in page.text and "kd-mobilenet:cut=5-seed2." in page.text
    assert "there are 0" in words(tuning([bare])) and "0 stopped early" in render(tuning([trial(0, 0.5), bare]))


def test_a_tuning_never_speaks_of_a_test_accuracy() -> None:
    rows = [one | {"test": {"accuracy": 0.1234, "correct": 1234, "count": 10_000}} for one in trials()]
    report = tuning(rows, gallery=[gallery_row()])
    for told in (render(report), markdown(report), summary_table(report)):
        assert not re.search(r"\btest\b", told, re.IGNORECASE) and "12.34" not in told and "paper, best" not in told
    assert "All accuracies here are those on the validation split" in words(report)
    validated = sweep(
        [row(arm, 0, 0.9, test=False, network=n) for arm in ("student", "kd") for n in ("mobilenet:cut=5", "mobilenet:cut=9")]
    )
    assert "All accuracies here are those on the validation split" in words(validated) and "test accuracy" not in render(validated)
    assert checked(validated).row("kd, mobilenet:cut=5")[1] == "90.1" and "paper, best" not in render(validated)


def test_trials_of_one_accuracy_have_no_best_and_no_scale_of_colours() -> None:
    """As a single one that finished: a scale would have the same number at each tick."""
    rows = trials()
    equal = [one | {"history": [epoch | {"validation_accuracy": 0.6867} for epoch in one["history"]]} for one in rows]
    assert "the best one circled" in words(tuning(rows)) and "the best one circled" not in words(tuning(equal))
    names, stopped = ("alpha", "temperature"), np.array([[0.1, 2.0]])
    assert "68.67" not in surface(np.array([[0.9, 4.0, 0.6867]]), stopped, names)
    assert ">60.5<" in surface(np.array([[0.9, 4.0, 0.60], [0.5, 2.0, 0.62]]), stopped, names)


def test_the_best_trials_and_settings_are_shown() -> None:
    rows = trials()
    page = checked(tuning(rows))
    best = max((one for one in rows if one["state"] == "done"), key=lambda one: one["history"][-1]["validation_accuracy"])
    accuracy = f"{100 * best['history'][-1]['validation_accuracy']:.2f}"
    assert page.row(best["cell"])[1:3] == [accuracy, "3"]
    assert page.row(best["cell"])[3:] == [f"{best['config']['alpha']:.4g}", f"{best['config']['temperature']:.4g}"]
    assert [one[0] for one in page.rows if one[0] == best["cell"]] and "The best 10 of 24 finished trials" in " ".join(page.text.split())
    assert f"| {best['cell']} | {accuracy} |" in markdown(tuning(rows)) and best["cell"] in summary_table(tuning(rows)).splitlines()[3]
    assert "exponents1, 2" in page.text.replace("\n", "")


def test_the_papers_points_stand_beside_ours() -> None:
    assert PUBLISHED["kd+ig"][4.12] == 0.9066 and PUBLISHED["student"][1121.71] == 0.5544 and PUBLISHED["kd"][12.04] == 0.8968
    assert {len(points) for points in PUBLISHED.values()} == {8}
    two = [
        row(arm, seed, 0.9, network=n) for arm in ("student", "kd+ig") for seed in (0, 1) for n in ("mobilenet:cut=5", "mobilenet:cut=9")
    ]
    assert "paper, best of ten on the test set (student, kd+ig)" in words(sweep(two))
    assert "Accuracy by compression" not in words(sweep()) and "paper, best" not in words(sweep())


def test_shares_of_the_training_set_stand_by_themselves() -> None:
    values = [0.80, 0.82, 0.84, 0.81]
    rows = [row("kd", seed, value, share=0.8) for seed, value in enumerate(values)] + [row("kd", seed, 0.9) for seed in (0, 1)]
    page = checked(sweep(rows))
    found = [one for one in page.rows if one and one[0] == "kd"]
    assert found[0][1] == "90.00" and found[0][3] == "2"
    assert ["kd", "80", "4", "81.75", f"{100 * stdev(values):.2f}", "80.00", "84.00"] in found


def test_a_latency_of_another_batch_is_not_drawn() -> None:
    entry = Latency(
        model="student, mobilenet:cut=5", parameters=10, multiply_adds=100, batch=64, threads=2, p50=5.0, p95=6.0, times_as_fast=2.0
    )
    assert "Accuracy against latency" not in words(sweep(latency=[entry]))
    assert "Accuracy against latency" in words(sweep(latency=[replace(entry, batch=1)]))


def test_many_rows_stay_readable() -> None:
    assert "runs, one by one" in words(full()) and len(render(full())) < 1_500_000
    commands = [row("kd", seed, 0.9, provenance={"command": f"run {seed}"}) for seed in range(30)]
    assert "And 22 more commands, which the rows hold" in words(sweep(commands))
