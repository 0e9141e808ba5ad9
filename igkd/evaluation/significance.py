"""Whether one arm is better than another: means, intervals and paired tests over seeds.

Runs of one seed start from the same weights and see the same batches and draws. What differs between two of them is the arm, so
arms are compared by the differences of their pairs, which lack the luck the two runs share. A difference is called one only
after Holm's correction for all the comparisons asked for.
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
"""Chance of calling a difference one where there is none, in a whole family of comparisons."""
POWER = 0.8
"""Chance of finding a difference of the size seen, at which `Comparison.seeds_needed` aims."""
DECIMALS = 12
"""Accuracies are ratios of counts; what two of them differ by beyond these decimals is rounding of the subtraction."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against another over the seeds that both have. NaN stands for what these seeds cannot tell."""

    arm: str
    reference: str
    seeds: int
    """Pairs."""
    difference: float
    """Mean of arm minus reference over the pairs, a share (0.01 is one point); NaN without pairs."""
    low: float
    high: float
    """95 % Student t interval of the difference, not corrected for other comparisons; NaN where the differences have no spread."""
    p: float
    """Two-sided p of the paired t-test; NaN where the differences have no spread."""
    p_holm: float
    """p after Holm's step-down correction (Scand. J. Statist. 6:65, 1979) for the whole family; NaN where p is."""
    family: int
    """Comparisons in the family: all of one call of `compare` that have a p."""
    effect: float
    """Cohen's d_z, mean of the differences over their standard deviation, without Hedges' correction, so that sqrt(seeds) times
    it is the test's t. It is too large by a factor of 1.8 for 3 seeds, on average, and of 1.25 for 5."""
    seeds_needed: int | None
    """Least number of pairs with which a t-test at 0.05, of this comparison alone, finds the effect seen 4 times in 5. An effect
    from few seeds is uncertain and as a rule too large, and this then too small: an order of magnitude. None without an effect."""

    @property
    def significant(self) -> bool:
        """Whether there is a difference, judged by the corrected p."""
        return self.p_holm < ALPHA

    @property
    def better(self) -> bool:
        """Whether the arm is better than the reference, beyond the luck of the seeds."""
        return self.significant and self.difference > 0

    @property
    def sentence(self) -> str:
        """What may be said, in plain words; differences in points (hundredths)."""
        arm, reference, seeds = self.arm, self.reference, f"{self.seeds} seeds"
        if self.seeds < 2:
            return f"{arm} and {reference} share {'1 seed' if self.seeds else 'no seed'}: no statement is possible"
        if math.isnan(self.p):
            seen = f"differ by the same {100 * self.difference:+.2f} points" if self.difference else "have the same accuracy"
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
    """Every arm against every reference, in the order of the arms; together they are the family of Holm's correction.

    `accuracies` maps an arm to its accuracy, a share, by seed. Seeds that only one of two arms has are left out of their
    comparison, references that no arm is called are left out altogether. References are compared with those named before them.

    Raises ValueError for an accuracy that is no share, NaN among them, and names its arm and seed.
    """
    for arm, by_seed in accuracies.items():
        for seed, accuracy in by_seed.items():
            if not 0 <= accuracy <= 1:
                raise ValueError(f"accuracy of arm {arm}, seed {seed}, is {accuracy}: expected a share between 0 and 1")
    known = [reference for reference in dict.fromkeys(references) if reference in accuracies]
    comparisons = []
    for arm in accuracies:
        # Only the references before it, where it is one itself: otherwise two references would meet twice.
        for reference in known[: known.index(arm)] if arm in known else known:
            comparisons.append(_paired(arm, reference, accuracies[arm], accuracies[reference]))
    tested = [i for i, comparison in enumerate(comparisons) if not math.isnan(comparison.p)]
    corrected = multipletests([comparisons[i].p for i in tested], ALPHA, method="holm")[1] if tested else []
    for i, p_holm in zip(tested, corrected, strict=True):
        comparisons[i] = replace(comparisons[i], p_holm=float(p_holm))
    return [replace(comparison, family=len(tested)) for comparison in comparisons]


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t, in the values' unit: (mean, low, high); of a single value (value, NaN, NaN).

    Raises ValueError where there are no values.
    """
    mean = fmean(values)
    if len(values) == 1:
        return mean, math.nan, math.nan
    # Not scipy's t.interval, which has NaN for values without spread. The report shows those as an interval of no width.
    half = float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """95 % interval of a proportion, as shares, by Wilson's score (J. Am. Stat. Assoc. 22:209, 1927); NaN of no trials.

    Raises ValueError unless `correct` is between 0 and `count`.
    """
    if not 0 <= correct <= count:
        raise ValueError(f"{correct} correct of {count} is no proportion")
    if count == 0:
        return math.nan, math.nan
    low, high = proportion_confint(correct, count, ALPHA, method="wilson")
    return float(low), float(high)


def _paired(arm: str, reference: str, accuracies: Mapping[int, float], others: Mapping[int, float]) -> Comparison:
    """The comparison by itself: nothing of the family is known yet."""
    # Unrounded, differences that are all the same have a spread of 1e-17 and with it an effect of 1e15.
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
    """Least number of pairs, from 2, with which a paired t-test finds a true effect d_z with `POWER`; None of no effect."""
    if not abs(effect) > 1e-6:  # NaN, 0, or a sum that is 0 but for rounding
        return None
    # 2 pairs are enough for 100; far beyond it noncentral t overflows.
    size = min(abs(effect), 100.0)
    # One tail, that of the effect's sign: the other is below 1e-6 at this power, and statsmodels 0.15 has NaN for it from effects of 5 on.
    if TTestPower().power(size, 2, ALPHA / 2, alternative="larger") >= POWER:
        return 2  # solve_power finds nothing below
    return math.ceil(float(TTestPower().solve_power(effect_size=size, alpha=ALPHA / 2, power=POWER, alternative="larger")))


def _interval(low: float, high: float) -> str:
    """Ends in points."""
    return f"{100 * low:z.2f} to {100 * high:z.2f}"
