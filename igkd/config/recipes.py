"""Recipes: named settings of jobs.distill. `--recipe NAME` sets the defaults, the rest of the command line changes them."""

import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from igkd.base.errors import UserError
from igkd.base.schema import fits
from igkd.base.settings import kinds
from igkd.base.storage import read_json
from igkd.config.command_line import parse
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import low_resolution_of

# SGD with one cycle and averaged weights, on normalised pixels, from a teacher that sees the same crop; see docs/decisions.md.
STRONG: dict[str, Any] = {
    "optimizer": "sgd",
    "schedule": "one-cycle",
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "batch_size": 128,
    "epochs": 200,
    "normalise": True,
    "averaging": 0.999,
    "alpha": 0.9,
    "temperature": 4.0,
    "logits": "crop",
}
ALSO = ("init", "taps", "explanation", "content", "share")
"""What a recipe's file says of a run besides how it learns: without them, its settings were found for something else."""
MADE = "made"
"""Entry of a recipe's file that says how it was found, and is no setting."""
RECIPES: dict[str, dict[str, Any]] = {
    # Hernandez, Chang, Nordling (arXiv 2503.13008), with every map and every logit at its own image.
    "paper": {},
    "paper-as-published": {"aligned": False},
    "strong": STRONG,
    # The same as far as two cores carry in some hours: jobs.pipeline --preset evidence-cpu.
    "strong-cpu": STRONG | {"epochs": 30, "low_resolution_epochs": 12, "averaging": 0.998},
    # The same for a night of two cores: some hundred steps instead of 70,000, in which a live teacher was of no use (results/choices).
    "strong-night": STRONG | {"epochs": 10, "batch_size": 64, "learning_rate": 0.05, "averaging": 0.99, "logits": "auto"},
}


def recipe_values(recipe: str) -> dict[str, Any]:
    """The settings of a recipe by name, or from a JSON file.

    Raises:
        UserError: there is no such recipe or file, or it sets what is no setting, or to what it cannot be.
    """
    if recipe in RECIPES:
        return RECIPES[recipe]
    if not recipe.endswith(".json"):
        raise UserError(f"recipe {recipe!r} is not one of {', '.join(RECIPES)}, nor a .json file of settings")
    values = read_json(Path(recipe))
    if isinstance(values, dict):
        values.pop(MADE, None)
    if not values or not isinstance(values, dict):
        raise UserError(f'{recipe} is no recipe: it must hold a JSON object of settings, such as {{"alpha": 0.5}}')
    usual = {
        f.name: f.default for f in fields(DistillConfig) if f.default is not MISSING and f.name not in ("recipe", "teacher", "min_workers")
    }
    for name, value in values.items():
        if name not in usual:
            raise UserError(f"{recipe} is no recipe: it sets {name!r}, which a recipe has not")
        if not _fits(value, usual[name], get_type_hints(DistillConfig)[name]):
            raise UserError(f"{recipe}: {name} cannot be {value!r}; it is for example {usual[name]!r}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def recipe_file(config: DistillConfig, made: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run as a recipe for others: those that differ from the defaults, and how they were found."""
    values = {name: getattr(config, name) for name, kind in kinds(config).items() if kind == "learning" and name != "ingest"}
    values |= {name: getattr(config, name) for name in ALSO}
    usual = {f.name: f.default for f in fields(DistillConfig)}
    return {name: value for name, value in values.items() if value != usual[name]} | {MADE: dict(made)}


def made_for(recipe: str) -> str | None:
    """Fingerprint of the store that a recipe was found with, if it is a file of jobs.tune."""
    if not recipe.endswith(".json"):
        return None
    values = read_json(Path(recipe))
    made = values.get(MADE, {}) if isinstance(values, dict) else {}
    return made.get("store_fingerprint") if isinstance(made, dict) else None


def _fits(value: Any, usual: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(usual, tuple):
        return isinstance(value, list) and len(value) == len(usual) and all(fits(v, float) for v in value)
    if usual is None:
        return value is None or fits(tuple(value) if isinstance(value, list) else value, hint)
    return fits(value, float) if isinstance(usual, float) else type(value) is type(usual)


def distill_config(recipe: str, **settings: Any) -> DistillConfig:
    """A configuration from a recipe and further settings. With other epochs than the recipe's, the share of low resolution stays."""
    found = DistillConfig(**recipe_values(recipe) | {"recipe": recipe} | {k: v for k, v in settings.items() if k != "epochs"})
    epochs = settings.get("epochs", found.epochs)
    low = found.low_resolution_epochs
    if "low_resolution_epochs" not in settings:
        low = low_resolution_of(epochs, low, found.epochs)
    return replace(found, epochs=epochs, low_resolution_epochs=low)


def parse_distill(prog: str) -> DistillConfig:
    """Parse the command line into a configuration; its --recipe decides the defaults of the other settings, and its --epochs, as in
    `distill_config`, how many of them are of low resolution."""
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="paper")
    first.add_argument("--epochs", default="")
    given = first.parse_known_args(sys.argv[1:])[0]
    values = recipe_values(given.recipe) | {"recipe": given.recipe}
    if given.epochs.isdecimal() and (low := values.get("low_resolution_epochs", 0)):
        values["low_resolution_epochs"] = low_resolution_of(int(given.epochs), low, values.get("epochs", DistillConfig.epochs))
    return parse(DistillConfig, prog, **values)
