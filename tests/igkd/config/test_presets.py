"""Presets of the pipeline: which runs they make, by which settings."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from igkd.config.distill import DistillConfig
from igkd.config.pipeline import PipelineConfig
from igkd.config.presets import DEMO, PRESETS, make_pipeline
from igkd.config.recipes import RECIPES, STRONG, distill_config

RUN = {"store", "out", "test_images", "teacher", "arm", "content", "seed", "maps"}
"""Entries of a configuration that say which run it is, and where; the others are settings that a recipe decides."""
FILES: dict[str, dict[str, Any]] = {
    "defaults.json": {"alpha": 0.01, "optimizer": "adam"},  # the same as without a recipe
    "best.json": {"alpha": 0.4, "exponents": [1.5, 1.7], "epochs": 3, "normalise": True},
    "lean.json": {"student": "lean:2:16x1,32x1", "epochs": 5},
    "strong.json": {"optimizer": "adamw"},  # called like one of ours
}


def settings(config: DistillConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in RUN}


def recipe_named(name: str, directory: Path) -> str:
    """A recipe of ours, or the path of a file."""
    if name in RECIPES:
        return name
    path = directory / name
    path.write_text(json.dumps(FILES[name]))
    return str(path)


@pytest.mark.parametrize(
    "command_line", [{}, {"epochs": 14}, {"workers": 2, "student": "mobilenet:cut=7", "arms": ("kd", "ig"), "seeds": (3,)}]
)
@pytest.mark.parametrize("name", [*RECIPES, *FILES])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_has_the_settings_of_the_recipe_that_it_is_labelled_with(
    preset: Any, name: str, command_line: dict[str, Any], tmp_path: Path
) -> None:
    recipe = recipe_named(name, tmp_path)
    runs = make_pipeline(PipelineConfig(preset=preset, out="o", recipe=recipe, **command_line)).students
    changes = {k: v for k, v in command_line.items() if k in ("epochs", "workers", "student")}
    networks = {one.student for one in make_pipeline(PipelineConfig(preset=preset, out="o")).students}
    if named := changes.pop("student", None) or FILES.get(name, {}).get("student"):
        networks = {named}
    assert {one.student for one in runs} == networks
    for one in runs:
        assert settings(one) == settings(distill_config(recipe, store="s", out="o", student=one.student, **changes))
        assert one.recipe == recipe
    labels = {one.label for one in runs}
    assert all(("" if name == "paper" else f", {Path(name).stem}") in label for label in labels)
    seeds = {one.seed for one in runs}
    kinds = {(one.label, one.student) for one in runs}
    assert len(runs) == len({one.out for one in runs}) == len(kinds) * len(seeds)


# What a preset changes of its recipes, which its documentation says.
CHANGES: dict[str, dict[str, Any]] = {"demo": STRONG | DEMO, "evidence-night": {"epochs": 8}}


@pytest.mark.parametrize("preset", PRESETS)
def test_without_a_recipe_a_run_has_its_presets_and_what_the_preset_changes(preset: Any) -> None:
    runs = make_pipeline(PipelineConfig(preset=preset, out="o")).students
    for one in runs:
        assert settings(one) == settings(distill_config(one.recipe, store="s", out="o", student=one.student, **CHANGES.get(preset, {})))
        assert one.label.endswith("" if one.recipe == "paper" else f", {one.recipe}")
    assert len(runs) == len({one.out for one in runs})


def test_a_recipe_leaves_arms_and_controls_to_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "black.json"
    path.write_text(json.dumps({"arm": "at", "content": "black", "seed": 5, "maps": 3}))
    runs = make_pipeline(PipelineConfig(preset="evidence", out="o", recipe=str(path), seeds=(0,))).students
    assert [one.arm for one in runs] == ["student", "kd", "ig", "kd+ig", "kd+ig", "kd+ig", "kd+ig"]
    assert [one.content for one in runs] == ["black", "black", "black", "black", "other", "noise", "brightness"]
    assert {(one.seed, one.maps) for one in runs} == {(0, 200)}


@pytest.mark.parametrize("preset", PRESETS)
def test_no_run_is_made_twice_where_a_network_or_recipe_makes_runs_equal(preset: Any) -> None:
    for changes in ({"student": "mobilenet:cut=9"}, {"recipe": "strong", "student": "mobilenet:cut=9"}):
        runs = make_pipeline(PipelineConfig(preset=preset, out="o", **changes)).students  # type: ignore[arg-type]
        assert len(runs) == len({one.out for one in runs}) == len(set(runs))
        whole = make_pipeline(PipelineConfig(preset=preset, out="o")).students
        assert {(one.arm, one.content, one.seed) for one in runs} <= {(one.arm, one.content, one.seed) for one in whole}
