import gc
import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from igkd.evaluation.significance import Comparison, compare, t_interval, wilson_interval

# Accuracies are ratios of counts, here over 1,000 images, with room for a shift by 0.1.
RUNS = st.dictionaries(st.integers(0, 9), st.integers(0, 900).map(lambda correct: correct / 1000), max_size=9)


@pytest.fixture(autouse=True, scope="module")
def little_garbage() -> Iterator[None]:
    """statsmodels' multipletests collects garbage, all of torch's modules each time: a quarter of a second a comparison."""
    gc.freeze()
    yield
    gc.unfreeze()


def arms(differences: list[float], base: tuple[float, ...] = (0.5, 0.53, 0.51, 0.56, 0.52, 0.5)) -> dict[str, dict[int, float]]:
    """kd and kd+ig, whose accuracies differ by these, one a seed."""
    reference = dict(enumerate(base[: len(differences)]))
    return {"kd": reference, "kd+ig": {seed: reference[seed] + difference for seed, difference in enumerate(differences)}}


def only(accuracies: Mapping[str, Mapping[int, float]], reference: str = "kd") -> Comparison:
    (comparison,) = compare(accuracies, [reference])
    return comparison


def same(a: Comparison, b: Comparison) -> bool:
    """Bit for bit, NaN included."""
    return repr(astuple(a)) == repr(astuple(b))


def power(effect: float, pairs: int) -> float:
    """Of a two-sided paired t-test at 0.05, from scipy's noncentral t; the tail of the wrong sign is left out where it is nothing."""
    edge, shift = stats.t.ppf(0.975, pairs - 1), abs(effect) * math.sqrt(pairs)
    wrong = stats.nct.cdf(-edge, pairs - 1, shift) if shift < 4 else 0.0
    return float(stats.nct.sf(edge, pairs - 1, shift) + wrong)


def test_t_interval_by_hand_and_by_scipy() -> None:
    # 0.1, 0.2, 0.3: mean 0.2, sd 0.1; t of 2 degrees of freedom is 4.302653 at 0.975.
    assert t_interval([0.1, 0.2, 0.3]) == pytest.approx((0.2, 0.2 - 0.4302653 / math.sqrt(3), 0.2 + 0.4302653 / math.sqrt(3)), rel=1e-6)
    values = [0.61, 0.6, 0.64, 0.57, 0.7]
    assert t_interval(values)[1:] == pytest.approx(stats.t.interval(0.95, 4, np.mean(values), stats.sem(values)), rel=1e-12)


def test_t_interval_of_one_value_of_equal_values_and_of_none() -> None:
    mean, low, high = t_interval([0.25])
    assert mean == 0.25 and math.isnan(low) and math.isnan(high)
    mean, low, high = t_interval([0.25, 0.25])
    assert mean == 0.25 and math.isnan(low) and math.isnan(high)
    with pytest.raises(ValueError):
        t_interval([])


def test_wilson_interval_by_hand() -> None:
    z = 1.959963984540054
    centre, half = 0.61 + z * z / 2000, z * math.sqrt(0.61 * 0.39 / 1000 + z * z / 4_000_000)
    expected = [(centre + sign * half) / (1 + z * z / 1000) for sign in (-1, 1)]
    assert wilson_interval(610, 1000) == pytest.approx(expected, rel=1e-12)
    # Of none or all correct, one end is certain and the other z^2 / (n + z^2) away.
    assert wilson_interval(0, 10) == pytest.approx((0, z * z / (10 + z * z)), abs=1e-15)
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z * z), 1), abs=1e-15)
    assert all(map(math.isnan, wilson_interval(0, 0)))
    for correct, count in ((11, 10), (-1, 10), (0, -1)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson_interval(correct, count)


def test_a_comparison_by_hand() -> None:
    # Differences of 1, 2 and 3 points: mean 2, sd 1, t = 2 sqrt(3); for 2 degrees of freedom p = 1 - t / sqrt(2 + t^2).
    found = only(arms([0.01, 0.02, 0.03]))
    assert (found.arm, found.reference, found.seeds, found.family) == ("kd+ig", "kd", 3, 1)
    assert found.difference == pytest.approx(0.02, rel=1e-9) and found.effect == pytest.approx(2, rel=1e-9)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9) and found.p_holm == found.p
    assert (found.low, found.high) == pytest.approx((0.02 - 0.04302653 / math.sqrt(3), 0.02 + 0.04302653 / math.sqrt(3)), rel=1e-6)


@settings(deadline=None)
@given(RUNS, RUNS)
def test_a_comparison_is_scipys_paired_test(a: dict[int, float], b: dict[int, float]) -> None:
    found, seeds = only({"kd": b, "kd+ig": a}), sorted(a.keys() & b.keys())
    left, right = ([runs[seed] for seed in seeds] for runs in (a, b))
    assert found.seeds == len(seeds)
    if len({round(1000 * x) - round(1000 * y) for x, y in zip(left, right, strict=True)}) < 2:
        assert all(map(math.isnan, (found.p, found.p_holm, found.low, found.high, found.effect))) and found.seeds_needed is None
        return
    test = stats.ttest_rel(left, right)
    interval = test.confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue, rel=1e-6)
    assert found.effect * math.sqrt(len(seeds)) == pytest.approx(test.statistic, rel=1e-6, abs=1e-9)
    assert (found.difference, found.low, found.high) == pytest.approx((np.mean(left) - np.mean(right), *interval), rel=1e-6, abs=1e-9)
    assert found.significant == (test.pvalue < 0.05) and found.better == (test.pvalue < 0.05 and np.mean(left) > np.mean(right))


@settings(deadline=None)
@given(RUNS, RUNS)
def test_swapping_the_arms_flips_the_signs_and_no_more(a: dict[int, float], b: dict[int, float]) -> None:
    found, swapped = only({"kd": b, "kd+ig": a}), only({"kd+ig": a, "kd": b}, "kd+ig")
    back = replace(swapped, arm="kd+ig", reference="kd", difference=-swapped.difference, effect=-swapped.effect)
    back = replace(back, low=-swapped.high, high=-swapped.low)
    for ours, theirs in zip(astuple(found), astuple(back), strict=True):
        assert ours == theirs or (math.isnan(ours) and math.isnan(theirs))


@settings(deadline=None)
@given(RUNS, RUNS, st.integers(1, 100), st.dictionaries(st.integers(40, 50), st.floats(0, 1), max_size=3))
def test_only_the_pairs_matter(a: dict[int, float], b: dict[int, float], shift: int, unpaired: dict[int, float]) -> None:
    found = only({"kd": b, "kd+ig": a})
    shifted = [{seed: accuracy + shift / 1000 for seed, accuracy in runs.items()} for runs in (a, b)]
    assert same(only({"kd": shifted[1], "kd+ig": shifted[0]}), found)
    assert same(only({"kd": dict(reversed(b.items())), "kd+ig": dict(reversed(a.items()))}), found)
    assert same(only({"kd": b, "kd+ig": a | unpaired}), found) and same(only({"kd": b | unpaired, "kd+ig": a}), found)


def test_pairing_sees_what_unpaired_runs_hide() -> None:
    # Seeds 10 points apart, the arm always about 1 point better: nothing for Welch, plain for pairs.
    accuracies = arms([0.011, 0.009, 0.010], base=(0.4, 0.5, 0.6))
    assert only(accuracies).better
    assert stats.ttest_ind(list(accuracies["kd+ig"].values()), list(accuracies["kd"].values()), equal_var=False).pvalue > 0.9


def with_p(p: float) -> dict[int, float]:
    """An arm whose paired t-test against 0.5 at 3 seeds has this p: differences of d - 0.01, d and d + 0.01."""
    mean = float(stats.t.isf(p / 2, 2)) * 0.01 / math.sqrt(3)
    return {seed: 0.5 + mean + spread for seed, spread in enumerate((-0.01, 0, 0.01))}


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ((0.01, 0.04, 0.03), (0.03, 0.06, 0.06)),  # 3 x 0.01, 2 x 0.03, and 1 x 0.04 may not be less than that
        ((0.04, 0.045, 0.02), (0.08, 0.08, 0.06)),  # none is significant, though every p is below 0.05
        ((0.5, 0.6, 0.01), (1.0, 1.0, 0.03)),  # never above 1
    ],
)
def test_holm_by_hand(raw: tuple[float, ...], adjusted: tuple[float, ...]) -> None:
    flat = dict.fromkeys(range(3), 0.5)
    # Arms without a test do not count.
    accuracies = {"kd": flat, "same": flat, "lone": {0: 0.7}} | {f"arm {i}": with_p(p) for i, p in enumerate(raw)}
    same_arm, lone, *found = compare(accuracies, ["kd"])
    assert [comparison.p for comparison in found] == pytest.approx(raw, rel=1e-6)
    assert [comparison.p_holm for comparison in found] == pytest.approx(adjusted, rel=1e-6)
    assert [comparison.significant for comparison in found] == [p < 0.05 for p in adjusted]
    assert {comparison.family for comparison in (same_arm, lone, *found)} == {3}
    assert math.isnan(same_arm.p_holm) and math.isnan(lone.p_holm)


@pytest.mark.parametrize("effect", [0.02, -0.3, 0.5, 1.0, 1.5, 3.3, 5.45, 8.0, 10.0, 11.5, 11.6, 40.0, 1e9])
def test_the_seeds_needed_are_the_fewest_that_suffice(effect: float) -> None:
    needed = only(_with_effect(effect)).seeds_needed
    assert needed is not None and needed >= 2
    assert effect > 100 or power(effect, needed) >= 0.8
    assert needed == 2 or power(effect, needed - 1) < 0.8


def _with_effect(effect: float) -> dict[str, dict[int, float]]:
    """Three seeds whose differences have this d_z."""
    spread = min(0.1, 0.1 / abs(effect))
    return arms([effect * spread - spread, effect * spread, effect * spread + spread])


def test_the_seeds_needed_at_the_edges_of_floating_point() -> None:
    assert only(arms([0.3, 0.300000000001])).seeds_needed == 2
    nothing = only(arms([0.1, 0.2, -0.3]))
    assert nothing.difference != 0 and nothing.seeds_needed is None  # 1e-17: rounding


def test_the_seeds_needed_find_the_effect_in_a_simulation() -> None:
    needed = only(_with_effect(1.0)).seeds_needed
    assert needed == 10
    draws = np.random.default_rng(0).normal(1, 1, (20_000, needed))
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(power(1.0, needed), abs=0.01)


@settings(deadline=None)
@given(RUNS, RUNS)
def test_a_difference_not_found_needs_more_seeds_than_there_were(a: dict[int, float], b: dict[int, float]) -> None:
    found = only({"kd": b, "kd+ig": a})
    assert found.significant or found.seeds_needed is None or found.seeds_needed > found.seeds


def pairs(accuracies: Mapping[str, Mapping[int, float]], references: list[str]) -> list[tuple[str, str]]:
    return [(comparison.arm, comparison.reference) for comparison in compare(accuracies, references)]


def test_every_pair_once_in_the_order_of_the_arms() -> None:
    accuracies = {arm: {0: 0.5, 1: 0.6} for arm in ("ig", "student", "kd", "kd+ig")}
    expected = [("ig", "student"), ("ig", "kd"), ("kd", "student"), ("kd+ig", "student"), ("kd+ig", "kd")]
    assert pairs(accuracies, ["student", "kd"]) == expected
    assert pairs(accuracies, ["student", "absent", "kd", "student"]) == expected
    assert pairs(dict(reversed(accuracies.items())), ["kd"]) == [("kd+ig", "kd"), ("student", "kd"), ("ig", "kd")]
    assert pairs(accuracies, []) == pairs(accuracies, ["absent"]) == pairs({}, ["kd"]) == pairs({"kd": {0: 0.5}}, ["kd"]) == []


@pytest.mark.parametrize("accuracy", [math.nan, math.inf, -0.01, 61.2])
def test_what_is_no_share_is_refused_by_arm_and_seed(accuracy: float) -> None:
    # Also where no comparison would have used it.
    with pytest.raises(ValueError, match=r"arm at, seed 17, is .*between 0 and 1"):
        compare({"kd": {0: 0.5}, "at": {0: 0.5, 17: accuracy}}, ["nothing"])


def test_equal_differences_are_no_proof_whatever_rounding_makes_of_them() -> None:
    accuracies = {"kd": {0: 0.35, 1: 0.45, 2: 0.55}, "kd+ig": {0: 0.37, 1: 0.47, 2: 0.57}}
    naive = [accuracies["kd+ig"][seed] - accuracies["kd"][seed] for seed in range(3)]
    assert any(a != b for a, b in pairwise(naive))
    found = only(accuracies)
    assert not found.significant and not found.better and found.difference == pytest.approx(0.02)
    assert found.sentence == "kd+ig and kd differ by the same +2.00 points in each of 3 seeds: without any spread no t-test is possible"
    assert only(arms([0, 0])).sentence == "kd+ig and kd have the same accuracy in each of 2 seeds: without any spread no t-test is possible"


def sentence(difference: float, low: float, high: float, p: float, p_holm: float, needed: int | None = 40, seeds: int = 5) -> str:
    figures = {"difference": difference, "low": low, "high": high, "p": p, "p_holm": p_holm, "effect": 1.0}
    return Comparison(arm="kd+ig", reference="kd", seeds=seeds, family=3, seeds_needed=needed, **figures).sentence


def test_the_sentences() -> None:
    better = "kd+ig is better than kd by 0.31 points, 95 % interval 0.05 to 0.57, 5 seeds"
    assert sentence(0.0031, 0.0005, 0.0057, 0.01, 0.03) == better
    assert sentence(-0.0031, -0.0057, -0.0005, 0.01, 0.03) == better.replace("better", "worse")
    missed = "no difference found between kd+ig and kd (+0.05 points, 95 % interval -0.40 to 0.50, 3 seeds); would need about 1,234 seeds"
    assert sentence(0.0005, -0.004, 0.005, 0.6, 0.9, 1234, 3) == missed
    nothing = "no difference found between kd+ig and kd (+0.00 points, 95 % interval 0.00 to 0.50, 5 seeds)"
    assert sentence(-1e-9, -1e-9, 0.005, 1.0, 1.0, None) == nothing
    uncorrected = "no difference found between kd+ig and kd (+0.31 points, 95 % interval 0.05 to 0.57, 5 seeds)"
    assert sentence(0.0031, 0.0005, 0.0057, 0.03, 0.09) == uncorrected + ": not significant after Holm's correction for 3 comparisons"


def test_fewer_than_two_common_seeds_allow_no_statement() -> None:
    assert only(arms([0.1])).sentence == "kd+ig and kd share 1 seed: no statement is possible"
    none = only({"kd": {0: 0.5, 1: 0.6}, "kd+ig": {2: 0.9, 3: 0.9}})
    assert none.sentence == "kd+ig and kd share no seed: no statement is possible"
    assert none.seeds == 0 and math.isnan(none.difference) and not none.significant


def test_the_sentence_of_real_figures() -> None:
    # The case by hand above: t = 2 sqrt(3) with 2 degrees of freedom is not enough, and 5 pairs have power 0.91 for d_z = 2.
    expected = "no difference found between kd+ig and kd (+2.00 points, 95 % interval -0.48 to 4.48, 3 seeds); would need about 5 seeds"
    assert only(arms([0.01, 0.02, 0.03])).sentence == expected
    assert only(arms([-0.019, -0.02, -0.021])).sentence == "kd+ig is worse than kd by 2.00 points, 95 % interval 1.75 to 2.25, 3 seeds"
