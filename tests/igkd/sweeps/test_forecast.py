"""The dry run of a pipeline: which work there is; how fast it goes is measured."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.pipeline import Pipeline, PipelineConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.config.presets import RESIDUAL, make_pipeline
from igkd.config.teacher import TeacherConfig
from igkd.networks.network import Classifier
from igkd.sweeps import forecast

IMAGES = "shapes:train=100,test=20"


def test_all_the_work_is_counted() -> None:
    student = DistillConfig(store="s", out="o", arm="kd", epochs=3, student="lean:2:8x1,16x1", batch_size=8, normalise=True)
    students = (student, replace(student, seed=1), replace(student, arm="kd+ig", low_resolution_epochs=1))
    teacher = TeacherConfig(images=IMAGES, out="t", epochs=4, batch_size=8, network="lean:2:8x1,16x1", low_resolution_epochs=2)
    precompute = PrecomputeConfig(images=IMAGES, teacher="t", store="s", steps=2, limit=50, engine="torch", views="3")
    found = list(forecast.stages(Pipeline(teacher=teacher, precompute=precompute, students=students, images_per_class=1)))
    label = "lean:2:8x1,16x1"
    assert [(one.name, one.images, one.runs) for one in found] == [
        ("teacher", 4 * 90, 1), ("maps", 50, 1), ("views", 150, 1), (f"kd, {label}", 3 * 45, 2), (f"kd+ig, {label}", 3 * 45, 1)
    ]  # fmt: skip
    assert all(math.isfinite(one.seconds) and one.seconds > 0 for one in found)
    assert found[3].seconds == pytest.approx(2 * found[3].images / found[3].rate)
    assert "kd, lean:2:8x1,16x1, 2 runs" in forecast.line(found[3])


def test_every_arm_and_control_has_a_time() -> None:
    """Also those whose signals are not made up for it: layers' features, masks, Grad-CAM."""
    one = DistillConfig(store="s", out="o", epochs=1, student="lean:2:8x1", batch_size=8)
    changes: list[dict[str, Any]] = [{"arm": "feat"}, {"arm": "kd+at"}, {"arm": "map", "map_every": 1}]
    changes += [{"arm": "ig", "overlay": 1.0, "content": content} for content in ("mask", "noise", "other", "black", "brightness")]
    changes += [{"arm": "kd+ig", "overlay": 1.0, "explanation": "gradcam"}]
    students = tuple(replace(one, **change) for change in changes)
    precompute = PrecomputeConfig(images=IMAGES, teacher="t", store="s", steps=2, limit=50, engine="torch")
    teacher = TeacherConfig(images=IMAGES, out="t", epochs=1, batch_size=8, network="lean:2:8x1")
    found = list(forecast.stages(Pipeline(teacher=teacher, precompute=precompute, students=students, images_per_class=1)))
    assert len(found) == 2 + len(changes) and all(0 < stage.seconds < math.inf for stage in found)


def passes_of(network: str, pipeline: Pipeline) -> dict[str, int]:
    """How often a network computes logits while each stage of a pipeline is measured."""
    counts: dict[str, int] = {}
    count = 0

    def hook(module: torch.nn.Module, *_: Any) -> None:
        nonlocal count
        count += isinstance(module, Classifier) and module.spec.name == network

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        for stage in forecast.stages(pipeline):
            counts[stage.name], count = count, 0
    finally:
        handle.remove()
    return counts


def test_a_teacher_that_runs_along_is_measured_with_its_student(teacher: str) -> None:
    """And a cut student is one of the teacher that is given."""
    one = DistillConfig(store="s", out="o", arm="kd", epochs=1, batch_size=8, logits="crop", teacher=teacher)
    students = (one, replace(one, arm="student"), replace(one, arm="kd+feat", logits="auto"))
    precompute = PrecomputeConfig(images=IMAGES, teacher=teacher, store="s", steps=2, limit=50, engine="torch")
    pipeline = Pipeline(teacher=None, precompute=precompute, students=students, images_per_class=1)
    name = "mobilenet:cut=5,width=0.35"
    along = passes_of("mobilenet:width=0.35", pipeline)
    assert along[f"kd, {name}"] == along[f"kd+feat, {name}"] == 2 * forecast.STEPS and along[f"student, {name}"] == 0
    stored = passes_of("mobilenet:width=0.35", replace(pipeline, precompute=replace(precompute, views="2")))
    assert stored[f"kd, {name}"] == 0 and stored[f"kd+feat, {name}"] == 2 * forecast.STEPS


def test_the_preset_for_processors_has_views_two_students_four_arms_and_three_seeds() -> None:
    made = make_pipeline(PipelineConfig(preset="evidence-cpu", out="o", images="shapes"))
    assert made.precompute.views == "all" and made.teacher is not None and made.teacher.keep_epochs == (10, 20, 30)
    assert len(made.students) == 24 == len({one.out for one in made.students})
    assert {one.student for one in made.students} == {"mobilenet:cut=5", RESIDUAL} and {one.seed for one in made.students[:8]} == {0}
    assert [(one.arm, one.content) for one in made.students[:4]] == [
        ("student", "own"), ("kd", "own"), ("kd+ig", "own"), ("kd+ig", "other")
    ]  # fmt: skip
    assert all(one.logits == "crop" and one.epochs == 30 and not any(c in one.out for c in " ,:") for one in made.students)


def test_a_limit_is_one() -> None:
    with pytest.raises(UserError, match="give one of them"):
        PipelineConfig(preset="demo", out="o", hours=1, until="07:00")
    for hours in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="--hours must be above 0"):
            PipelineConfig(preset="demo", out="o", hours=hours)
