import math
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from igkd.evaluation.comparisons import families, grouped, varied
from igkd.evaluation.importance import importances
from igkd.report.sweep_page import render
from tests.helpers.sweep_rows import SETTINGS, checked, row, sweep, trial, tuning, words

NETWORKS = ("mobilenet:cut=5", "mobilenet:cut=9")


def test_families_ask_three_questions_of_each_recipe_and_correct_within_each() -> None:
    rng = np.random.default_rng(2)
    arms = (
        "student",
        "kd",
        "kd+ig",
        "kd+ig, black",
        "kd+ig, other",
        "student, strong",
        "kd, strong",
        "kd+ig, strong",
        "kd+ig, other, strong",
    )
    rows = [row(arm, seed, 0.9 + rng.normal(0, 0.004), network=network) for arm in arms for network in NETWORKS for seed in range(4)]
    found = families(grouped(rows, "test"))
    assert len(found) == 6
    methods, controls, own, strong_methods, strong_controls, strong_own = found
    told = [(c.arm, c.reference) for c in methods.comparisons]
    of_one_network = [("kd", "student"), ("kd+ig", "student"), ("kd+ig", "kd")]
    assert sorted(told) == sorted((f"{a}, {n}", f"{b}, {n}") for a, b in of_one_network for n in NETWORKS)
    assert {(c.arm, c.reference) for c in own.comparisons if "mobilenet:cut=5" in c.arm} == {
        ("kd+ig, mobilenet:cut=5", "kd+ig, black, mobilenet:cut=5"),
        ("kd+ig, mobilenet:cut=5", "kd+ig, other, mobilenet:cut=5"),
    }
    assert len(controls.comparisons) == 8
    assert {(c.arm, c.reference) for c in strong_own.comparisons} == {
        ("kd+ig, strong, mobilenet:cut=5", "kd+ig, other, strong, mobilenet:cut=5"),
        ("kd+ig, strong, mobilenet:cut=9", "kd+ig, other, strong, mobilenet:cut=9"),
    }
    assert all("strong" in c.arm and "strong" in c.reference for c in strong_methods.comparisons + strong_controls.comparisons)
    for family in found:
        # Holm's correction by hand: the k-th smallest p times the number of those not smaller, made to ascend.
        ordered, running = sorted(family.comparisons, key=lambda c: c.p), 0.0
        for k, c in enumerate(ordered):
            running = max(running, min(1.0, (len(ordered) - k) * c.p))
            assert c.p_holm == pytest.approx(running) and c.family == len(ordered)
        for (arm, reference), c in zip(family.pairs, family.comparisons, strict=True):
            values = [list(group.by_seed.values()) for group in (arm, reference)]
            assert c.p == pytest.approx(stats.ttest_rel(*values).pvalue)
            assert c.difference == pytest.approx(fmean(values[0]) - fmean(values[1])) and c.low < c.difference < c.high


def test_the_method_against_its_controls_has_the_right_sign() -> None:
    rows = [row(arm, seed, base + 0.001 * (seed % 3)) for arm, base in (("kd+ig", 0.93), ("kd+ig, black", 0.90)) for seed in range(5)]
    for i, one in enumerate(rows):
        one["test"]["accuracy"] += 0.0002 * (i % 4)
    assert "kd+ig is better than kd+ig, black by" in words(sweep(rows))


def test_a_control_is_compared_with_the_method_of_its_own_kind_of_map() -> None:
    kinds = {
        "kd+map": ("kd+map", "own", "ig"),
        "kd+map, gradcam": ("kd+map", "own", "gradcam"),
        "kd+map, gradcam, other": ("kd+map", "other", "gradcam"),
    }
    rows = [
        row(name, seed, 0.9 + 0.001 * seed + 0.0007 * place * (seed % 2))
        | {"arm": arm, "content": content, "recipe": "paper", "config": SETTINGS | {"explanation": kind}}
        for place, (name, (arm, content, kind)) in enumerate(kinds.items())
        for seed in range(4)
    ]
    found = {(c.arm, c.reference) for family in families(grouped(rows, "test")) for c in family.comparisons}
    assert ("kd+map, gradcam", "kd+map, gradcam, other") in found and ("kd+map", "kd+map, gradcam, other") not in found


def test_a_recipe_is_not_compared_with_another_recipes_student() -> None:
    rows = [row(arm, seed, 0.9 + 0.001 * seed) for arm in ("student", "kd+ig, strong") for seed in (0, 1)]
    page = checked(sweep(rows))
    assert "No two arms of one recipe and network are there to compare" in page.text
    assert page.row("kd+ig, strong")[4:] == ["–"] * 4


def test_settings_that_a_grid_varies_tell_groups_apart() -> None:
    rows = [row("student", seed, 0.9 + 0.001 * seed) for seed in (0, 1)]
    rows += [row("kd", s, 0.91 + 0.001 * s * s, config=SETTINGS | {"alpha": alpha}) for alpha in (0.1, 0.9) for s in (0, 1)]
    page = checked(sweep(rows))
    assert page.row("kd, alpha 0.1")[3] == "2" and page.row("kd, alpha 0.9")[4] == "+1.00"
    with pytest.raises(ValueError, match="two results of one seed"):
        render(sweep([row("kd"), row("kd")]))


def test_an_irrelevant_setting_has_little_importance() -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rows = []
        for number in range(60):
            alpha, noise, kind = float(10 ** rng.uniform(-2, 0)), float(rng.uniform(0, 1)), str(rng.choice(["sgd", "adam"]))
            rows.append(trial(number, 0.8 - 0.1 * math.log10(alpha / 0.03) ** 2, alpha=alpha, noise=noise, optimizer=kind))
        found = importances(rows, ["noise", "alpha", "optimizer", "temperature"])
        assert list(found)[0] == "alpha" and found["alpha"] > 0.7 > 3 * found["noise"] and found["temperature"] == 0
        assert sum(found.values()) == pytest.approx(1)


def test_importance_needs_ten_finished_trials() -> None:
    rows = [trial(i, 0.5 + 0.01 * i, alpha=0.1 * (i + 1)) for i in range(12)]
    pruned = [one | {"state": "pruned"} for one in rows[:3]] + rows[3:]
    assert importances(rows, ["alpha"]) == {"alpha": 1.0} and importances(pruned, ["alpha"]) == {} and importances(rows, []) == {}
    assert "needs 10 finished trials, and there are 9" in words(tuning(pruned))
    same = [trial(i, 0.5, alpha=0.1 * (i + 1)) for i in range(12)]
    assert importances(same, ["alpha"]) == {} and "All of them have the same settings or the same accuracy" in words(tuning(same))


def test_varied_settings_are_those_that_differ() -> None:
    rows = [trial(i, 0.5, alpha=0.1 * i, exponents=[1.0, 2.0 + i], seed=i, out=str(i)) for i in range(2)]
    assert varied(rows) == ["alpha", "exponents 2"]
