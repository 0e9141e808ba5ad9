"""Importance of each hyper-parameter in a tuning, as estimated by optuna."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from igkd.evaluation.comparisons import accuracy, settings

FEWEST = 10
"""Least number of finished trials for an estimate."""
BEST = 0.25
"""Share of the trials that count as good."""


def importances(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Each setting's importance; they add up to 1, the largest comes first, and a setting that never changed has 0.

    By PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023): how much the distribution of a setting among the best quarter of the trials
    differs from that among all. It is an estimate, and ignores interactions.

    Args:
        rows: of a tuning. Only finished trials with a validation accuracy are looked at.
        names: settings as `sweep_groups.settings` calls them; a trial without one of them is left out.

    Returns:
        {} where fewer than `FEWEST` trials are left, or the settings or the accuracy are the same in all.
    """
    trials = [(settings(row), accuracy(row, "validation")) for row in rows if row.get("state", "done") == "done"]
    trials = [(own, value) for own, value in trials if math.isfinite(value) and all(name in own for name in names)]
    if len(trials) < FEWEST or len({value for _, value in trials}) == 1:
        return {}
    distributions = {name: d for name in names if (d := _distribution([own[name] for own, _ in trials])) is not None}
    if not distributions:
        return {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise optuna prints a line for every study
    try:
        study = optuna.create_study(direction="maximize")
    finally:
        optuna.logging.set_verbosity(before)
    for own, value in trials:
        params = {name: _value(own[name], d) for name, d in distributions.items()}
        study.add_trial(create_trial(params=params, distributions=distributions, value=value))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST)
    found = get_param_importances(study, evaluator=evaluator, params=list(distributions))
    return found | {name: 0.0 for name in names if name not in distributions}


def _distribution(values: Sequence[Any]) -> BaseDistribution | None:
    """A distribution that covers the values: a range (logarithmic if it spans a factor of 10) or a choice; None if all are equal."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high >= 10 * low) if high > low else None
    choices = list(dict.fromkeys(map(repr, values)))
    return CategoricalDistribution(choices) if len(choices) > 1 else None


def _value(value: Any, distribution: BaseDistribution) -> float | str:
    return repr(value) if isinstance(distribution, CategoricalDistribution) else float(value)
