"""The cells (runs) of an ablation: each grid makes them from the settings."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from igkd.base.choices import ARMS, LOGIT_PARTS, MAP_PARTS, Arm, Content, parts_of
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.presets import PAPER_ARMS
from igkd.config.recipes import distill_config, recipe_values
from igkd.config.sweeps import PAPER_STUDENTS, AblateConfig, Grid
from igkd.networks.families import canonical_name
from igkd.store import Store
from igkd.training.identity import decided

SHARE = 0.8
"""Share of the training images that a Monte-Carlo run uses."""
CHOICES: dict[str, tuple[str, ...]] = {
    "its optimiser": ("optimizer", "schedule", "learning_rate", "weight_decay", "batch_size"),
    "normalised pixels": ("normalise",),
    "averaged weights": ("averaging",),
    "its weight of distillation": ("alpha", "temperature"),
    "the teacher's answer to the crop": ("logits", "live"),
    "cutout": ("cutout",),
    "its overlay": ("overlay", "exponents", "blend", "overlay_schedule"),
    "bfloat16": ("precision",),
}
"""The choices of a recipe, each a set of settings that belong together."""
USED_BY = {
    "its weight of distillation": LOGIT_PARTS,
    "the teacher's answer to the crop": LOGIT_PARTS,
    "its overlay": frozenset({"ig"}),
}
"""The parts of an arm that make use of a choice, where not every arm does."""
PLAIN = {"logits": "image", "precision": "float32"}
"""What undoes a setting whose default may come to the same as the choice: `auto` takes views, or bfloat16, where there are any."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep."""

    label: str
    """The name that runs with other seeds share: a line of a table."""
    config: DistillConfig
    without: str = ""
    """The choice of the recipe that is undone; "" if none is."""

    @property
    def name(self) -> str:
        """Name of the run's directory, unique in a sweep."""
        return Path(self.config.out).name


def make_cell(root: str, config: DistillConfig, label: str | None = None, without: str = "") -> Cell:
    """A run under ROOT/students, whose name contains all that distinguishes it from others."""
    label = (label or config.label) + (f", without {without}" if without else "")
    share = "" if config.share == 1 else f"-share{100 * config.share:.0f}"
    name = f"{re.sub(r'[^A-Za-z0-9+.]+', '-', f'{label} {config.student}')}{share}-seed{config.seed}"
    return Cell(label=label, without=without, config=replace(config, out=f"{root}/students/{name}"))


def settled(grid: Iterable[Cell], store: Store) -> list[Cell]:
    """The runs with the settings that depend on the store (`auto`) decided."""
    return [replace(cell, config=decided(cell.config, store)) for cell in grid]


def cells(config: AblateConfig, store: Store) -> list[Cell]:
    """The runs of all grids, each once, ordered by seed, so that a sweep that is stopped early has some runs of every arm.

    Raises:
        UserError: there are no runs, or a recipe is invalid.
    """
    found: dict[str, Cell] = {}
    for seed in dict.fromkeys(config.seeds):
        for recipe in dict.fromkeys(config.recipes):
            given = {"teacher": config.teacher, "test_images": config.test_images, "epochs": config.epochs, "maps": config.maps}
            given["bad_images"] = config.bad_images
            base = distill_config(
                recipe, store=config.store, out=config.out, seed=seed, **{k: v for k, v in given.items() if v is not None}
            )
            bases = [(grid, replace(base, student=student)) for grid in config.grids for student in _students(grid, base, config)]
            for cell in (cell for grid, one in bases for cell in _grid(grid, one, config, store)):
                other = found.setdefault(cell.name, cell)
                if other != cell:
                    raise UserError(f"two different runs would be called {cell.name}: give recipes of different names")
    if not found:
        raise UserError("the grid is empty: --grids, --recipes, --arms, --contents, --students and --seeds must name at least one each")
    return list(found.values())


def _students(grid: Grid, base: DistillConfig, config: AblateConfig) -> Sequence[str]:
    """The networks of a grid."""
    if config.students is not None:
        return [canonical_name(one) for one in config.students]
    return PAPER_STUDENTS if grid == "compression" else (base.student,)


def _grid(grid: Grid, base: DistillConfig, config: AblateConfig, store: Store) -> Iterator[Cell]:
    """One grid for one recipe, seed and network."""
    arms: tuple[Arm, ...] = config.arms if config.arms is not None else ARMS if grid == "arms" else PAPER_ARMS
    if grid in ("arms", "compression"):
        yield from (make_cell(config.out, replace(base, arm=arm)) for arm in arms)
    elif grid == "monte-carlo":
        yield from (make_cell(config.out, replace(base, arm=arm, share=SHARE)) for arm in arms)
    elif grid == "controls":
        yield from (make_cell(config.out, one) for one in _controls(base, arms, config.contents, store))
    else:
        yield from _choices(base, config)


def _controls(base: DistillConfig, arms: Sequence[Arm], contents: Sequence[Content] | None, store: Store) -> Iterator[DistillConfig]:
    """Some arms, and those that use maps with something else in the map's place, too."""
    for arm in arms if contents is None or contents else ():
        yield replace(base, arm=arm)
        parts = parts_of(arm)
        for content in get_args(Content) if contents is None else contents:
            # Without being asked for: no masks where there are none, and no black target, to which nothing can be similar.
            possible = contents is not None or ((content != "mask" or store.plan.has_mask) and (content != "black" or "map" not in parts))
            if possible and not MAP_PARTS.isdisjoint(parts):
                yield replace(base, arm=arm, content=content)


def _choices(base: DistillConfig, config: AblateConfig) -> Iterator[Cell]:
    """The runs of a recipe, and of the recipe with each choice undone, which then has the paper's settings. A choice that an arm makes
    no use of is left out: its two runs would be the same."""
    chosen = recipe_values(base.recipe)
    usual = {f.name: f.default for f in fields(DistillConfig)}
    for arm in config.arms or ("kd+ig",):
        whole = replace(base, arm=arm)
        yield make_cell(config.out, whole)
        for name, settings in CHOICES.items():
            undone: dict[str, Any] = {k: PLAIN.get(k, usual[k]) for k in settings}
            made = any(chosen.get(k, usual[k]) not in (usual[k], undone[k]) for k in settings)
            used = name not in USED_BY or not USED_BY[name].isdisjoint(parts_of(arm))
            if made and used and _learns(without := replace(whole, **undone)) != _learns(whole):
                yield make_cell(config.out, without, whole.label, without=name)


def _learns(config: DistillConfig) -> tuple[object, ...]:
    """How a run learns, as far as its settings say it."""
    normalise = config.init is not None or config.normalise  # weights to start from say themselves how pixels are normalised
    return config.objective, config.optimisation, normalise
