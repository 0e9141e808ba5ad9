"""The search space of jobs.tune: ranges of settings, and their conversion to a run's configuration."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution

from igkd.base.choices import LOGIT_PARTS, parts_of
from igkd.config.distill import DistillConfig

LEARNING_RATES = {"sgd": (0.005, 0.5), "adam": (1e-4, 1e-2), "adamw": (1e-4, 1e-2)}


def space(config: DistillConfig) -> dict[str, BaseDistribution]:
    """Ranges of the settings that an arm uses; "exponent_low" and "exponent_high" are the ends of `exponents`."""
    parts = parts_of(config.arm)
    low, high = LEARNING_RATES[config.optimizer]
    found: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(low, high, log=True),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    }
    if "kd" in parts:
        found |= {"alpha": FloatDistribution(0.005, 1.0, log=True)}
    if not LOGIT_PARTS.isdisjoint(parts):
        found |= {"temperature": FloatDistribution(1.0, 10.0, log=True)}
    if "dkd" in parts:
        found |= {"dkd": FloatDistribution(0.1, 10.0, log=True), "beta": FloatDistribution(0.25, 16.0, log=True)}
    if "lskd" in parts:
        found |= {"lskd": FloatDistribution(0.1, 20.0, log=True)}
    if "ig" in parts:
        found |= {"overlay": FloatDistribution(0.0, 0.5)}
        found |= {"exponent_low": FloatDistribution(0.25, 1.0, log=True), "exponent_high": FloatDistribution(1.0, 4.0, log=True)}
    if "at" in parts:
        found |= {"gamma": FloatDistribution(0.1, 10_000.0, log=True)}
    if "feat" in parts:
        found |= {"feature_weight": FloatDistribution(0.01, 100.0, log=True)}
    if "map" in parts:
        found |= {"map_weight": FloatDistribution(0.01, 10.0, log=True)}
    return found


def tuned(base: DistillConfig, settings: Mapping[str, Any]) -> DistillConfig:
    """A run's configuration with the settings that the search proposes."""
    values = dict(settings)
    if "exponent_low" in values:
        values["exponents"] = (values.pop("exponent_low"), values.pop("exponent_high"))
    return replace(base, **values)


def settings_of(values: Mapping[str, Any], names: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The search's settings for a configuration's values: the inverse of `tuned`."""
    low, high = values["exponents"]
    known = {**values, "exponent_low": low, "exponent_high": high}
    return {name: float(known[name]) for name in names}


def inside(settings: Mapping[str, Any], ranges: Mapping[str, BaseDistribution]) -> bool:
    """Whether every setting lies in its range."""
    return all(ranges[name]._contains(value) for name, value in settings.items())
