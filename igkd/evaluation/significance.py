"""Whether one arm is better than another: means, intervals and paired tests over seeds.

Runs with the same seed start from the same weights and see the same batches and random draws; only the arm differs. So arms are
compared by the differences of such pairs, in which the randomness common to both runs cancels. A difference counts as found only
after Holm's correction for all comparisons of the call.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

ALPHA = 0.05
"""Probability of finding a difference where there is none, for a whole family of comparisons."""
POWER = 0.8
"""Probability of finding a difference of the observed size that `Comparison.seeds_needed` is computed for."""
DECIMALS = 12
"""Differences of accuracies are rounded to this many decimals, which removes the rounding error of the subtraction."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm compared with another over the seeds that both have. NaN means that there are too few seeds for a value."""

    arm: str
    reference: str
    seeds: int
    """Number of pairs."""
    difference: float
    """Mean of arm minus reference over the pairs, as a share (0.01 is one point); NaN without pairs."""
    low: float
    high: float
    """`low` and `high`: 95 % Student t interval of the difference, not corrected for other comparisons; NaN if all pairs differ equally."""
    p: float
    """Two-sided p of the paired t-test; NaN if all pairs differ equally."""
    p_holm: float
    """p after Holm's step-down correction (Scand. J. Statist. 6:65, 1979) for the whole family; NaN if p is."""
    family: int
    """Number of comparisons in the family: all of one call of `compare` that have a p."""
    effect: float
    """Cohen's d_z: mean of the differences divided by their standard deviation. Without Hedges' correction, so that sqrt(seeds) * d_z is
    the test's t; on average it is too large by a factor of 1.8 for 3 seeds and of 1.25 for 5."""
    seeds_needed: int | None
    """Least number of pairs with which a t-test of this comparison alone, at 0.05, finds the observed effect with probability `POWER`. Only
    an order of magnitude: effects from few seeds are uncertain and mostly too large, this number then too small. None without an effect."""

    @property
    def significant(self) -> bool:
        """Whether a difference was found, by the corrected p."""
        return self.p_holm < ALPHA

    @property
    def better(self) -> bool:
        """Whether the arm is significantly better than the reference."""
        return self.significant and self.difference > 0

    @property
    def sentence(self) -> str:
        """The result as a sentence; differences in points (hundredths)."""
        arm, reference, seeds = self.arm, self.reference, f"{self.seeds} seeds"
        if self.seeds < 2:
            return f"{arm} and {reference} share {'1 seed' if self.seeds else 'no seed'}: no statement is possible"
        if math.isnan(self.p):
            seen = f"differ by the same {100 * self.difference:+z.2f} points" if self.difference else "have the same accuracy"
            return f"{arm} and {reference} {seen} in each of {seeds}: without any spread no t-test is possible"
        if self.significant:
            low, high = (self.low, self.high) if self.better else (-self.high, -self.low)
            verdict = f"{arm} is {'better' if self.better else 'worse'} than {reference}"
            return f"{verdict} by {100 * abs(self.difference):.2f} points, 95 % interval {_interval(low, high)}, {seeds}"
        found = f"{100 * self.difference:+z.2f} points, 95 % interval {_interval(self.low, self.high)}, {seeds}"
        found = f"no difference found between {arm} and {reference} ({found})"
        if self.p < ALPHA:
            return f"{found}: not significant after Holm's correction for {self.family} comparisons"
        return found if self.seeds_needed is None else f"{found}; would need about {self.seeds_needed:,} seeds"


def compare(accuracies: Mapping[str, Mapping[int, float]], references: Sequence[str]) -> list[Comparison]:
    """Compare every arm with every reference; all these comparisons are one family of Holm's correction.

    Args:
        accuracies: arm -> seed -> accuracy, a share. A comparison uses the seeds that both arms have.
        references: names of arms to compare with; names that are not arms are ignored. A reference is compared with those before it.

    Returns:
        the comparisons, in the order of the arms.

    Raises:
        ValueError: an accuracy is not between 0 and 1; the message names arm and seed.
    """
    for arm, by_seed in accuracies.items():
        for seed, accuracy in by_seed.items():
            if not 0 <= accuracy <= 1:
                raise ValueError(f"accuracy of arm {arm}, seed {seed}, is {accuracy}: expected a share between 0 and 1")
    known = [reference for reference in dict.fromkeys(references) if reference in accuracies]
    comparisons = []
    for arm in accuracies:
        # A reference is compared only with the references before it: otherwise two references would be compared twice.
        for reference in known[: known.index(arm)] if arm in known else known:
            comparisons.append(_paired(arm, reference, accuracies[arm], accuracies[reference]))
    tested = [i for i, comparison in enumerate(comparisons) if not math.isnan(comparison.p)]
    corrected = multipletests([comparisons[i].p for i in tested], ALPHA, method="holm")[1] if tested else []
    for i, p_holm in zip(tested, corrected, strict=True):
        comparisons[i] = replace(comparisons[i], p_holm=float(p_holm))
    return [replace(comparison, family=len(tested)) for comparison in comparisons]


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the mean and its 95 % interval by Student's t, in the values' unit; low and high are NaN for a single value, and
    for equal values: without any spread nothing is known of it, and an interval of width 0 would claim certainty.

    Raises:
        ValueError: there are no values.
    """
    mean = fmean(values)
    if len(values) == 1 or not stdev(values) > 0:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """(low, high): 95 % interval of a proportion by Wilson's score (J. Am. Stat. Assoc. 22:209, 1927); NaN if `count` is 0.

    Raises:
        ValueError: `correct` is not between 0 and `count`.
    """
    if not 0 <= correct <= count:
        raise ValueError(f"{correct} correct of {count} is no proportion")
    if count == 0:
        return math.nan, math.nan
    low, high = proportion_confint(correct, count, ALPHA, method="wilson")
    return float(low), float(high)


def _paired(arm: str, reference: str, accuracies: Mapping[int, float], others: Mapping[int, float]) -> Comparison:
    """The comparison of one pair of arms, without Holm's correction."""
    # Without rounding, equal differences would have a standard deviation of 1e-17 and thus an effect of 1e15.
    differences = [round(accuracies[seed] - others[seed], DECIMALS) for seed in sorted(accuracies.keys() & others.keys())]
    seeds = len(differences)
    difference = fmean(differences) if differences else math.nan
    low = high = p = effect = math.nan
    if seeds > 1 and (spread := stdev(differences)) > 0:
        _, low, high = t_interval(differences)
        effect = difference / spread
        p = 2 * float(stats.t.sf(abs(effect) * math.sqrt(seeds), seeds - 1))
    return Comparison(
        arm=arm,
        reference=reference,
        seeds=seeds,
        difference=difference,
        low=low,
        high=high,
        p=p,
        p_holm=math.nan,
        family=0,
        effect=effect,
        seeds_needed=_pairs_needed(effect),
    )


def _pairs_needed(effect: float) -> int | None:
    """Least number of pairs, at least 2, with which a paired t-test finds a true effect d_z with `POWER`; None without an effect."""
    if not abs(effect) > 1e-6:  # NaN, 0, or 0 up to rounding
        return None
    # For an effect of 100, 2 pairs are enough; far above it the noncentral t distribution overflows.
    size = min(abs(effect), 100.0)
    # Only the tail on the effect's side: the other is below 1e-6 at this power, and statsmodels 0.15 gives NaN for it from effects of 5 on.
    if TTestPower().power(size, 2, ALPHA / 2, alternative="larger") >= POWER:
        return 2  # solve_power cannot find solutions below 2
    return math.ceil(float(TTestPower().solve_power(effect_size=size, alpha=ALPHA / 2, power=POWER, alternative="larger")))


def _interval(low: float, high: float) -> str:
    """Text of an interval, in points."""
    return f"{100 * low:z.2f} to {100 * high:z.2f}"
