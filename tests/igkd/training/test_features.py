"""Feature distillation: its formula, and a projection that is trained, saved and resumed with the student."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import Objective
from igkd.images.views import crop_flip
from igkd.networks import checkpoint
from igkd.networks.network import build, channels_at
from igkd.training.augment import draw
from igkd.training.batches import Batch
from igkd.training.loop import compute_loss
from igkd.training.run import Trainer
from igkd.training.student_data import distill_task, open_store, open_teacher_of
from igkd.training.task import Task
from igkd.training.terms import terms_of
from tests.helpers.training import TINY, learner, quiet, random_samples, recipe, same_weights, without_seconds

FEATURES = Objective(feature_weight=0.7, tap="features.4", teacher_tap="features.3", tap_channels=(8, 8), logits="live")


def objective() -> Objective:
    """Of a student and a teacher whose layers differ in channels and size."""
    student, teacher = build(TINY, 1), build(replace(TINY, name="mobilenet:cut=11"), 2)
    return replace(FEATURES, tap_channels=(channels_at(student, "features.4"), channels_at(teacher, "features.3")))


def test_the_loss_is_the_formula() -> None:
    samples, how, wanted = random_samples(6), recipe(padding=2), objective()
    student, teacher = build(TINY, 1).eval(), build(replace(TINY, name="mobilenet:cut=11"), 2).eval()
    torch.manual_seed(5)
    terms = terms_of(wanted, how)
    draws = draw(3, 1, samples.ids, samples.shape, how, wanted)
    made = learner(student, how, wanted, 3, teacher=teacher, terms=terms)
    loss, _ = compute_loss(made, Batch(samples, draws, 6), 1)
    clean = crop_flip(samples.pixels, draws.view).float() / 255
    with torch.no_grad():
        logits, mine = student(clean, ("features.4",))
        theirs = teacher(clean, ("features.3",))[1]["features.3"]
        weight, bias = (p for _, p in terms.named_parameters())
        projected = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], mine["features.4"]) + bias[:, None, None]
        if theirs.shape != projected.shape:
            theirs = nn.functional.interpolate(theirs, size=projected.shape[2:], mode="bilinear", antialias=True)
        expected = nn.functional.cross_entropy(logits, samples.labels) + 0.7 * ((projected - theirs) ** 2).mean()
    assert mine["features.4"].shape[1] != theirs.shape[1], "a projection that could be left out shows nothing"
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in terms.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def task(**changes: Any) -> Task:
    samples = random_samples(20)
    usual: dict[str, Any] = {
        "spec": TINY, "train": samples, "count": len(samples), "validation": random_samples(5, seed=9), "seed": 4,
        "optimisation": recipe(epochs=3), "objective": objective(), "teacher": build(replace(TINY, name="mobilenet:cut=11"), 2),
    }  # fmt: skip
    return Task(**usual | changes)


def test_a_resumed_run_ends_with_the_same_network_and_projection(tmp_path: Path) -> None:
    whole = Trainer(task(), lambda network: network, progress=quiet)
    began = [p.detach().clone() for p in whole.terms.parameters()]
    list(whole.epochs())
    assert began and all(not torch.equal(a, b) for a, b in zip(began, whole.terms.parameters(), strict=True)), "it is not trained"
    first = Trainer(task(), lambda network: network, progress=quiet)
    assert all(torch.equal(a, b) for a, b in zip(began, first.terms.parameters(), strict=True)), "the seed does not fix it"
    next(first.epochs())
    first.save(tmp_path)
    torch.manual_seed(77)
    again = Trainer(task(), lambda network: network, progress=quiet)
    again.load(tmp_path)
    list(again.epochs())
    assert without_seconds(again.history) == without_seconds(whole.history)
    assert same_weights(again.model, whole.model) and same_weights(again.terms, whole.terms)


def test_an_arm_with_it_has_a_live_teacher(finished: str, teacher: str) -> None:
    config = DistillConfig(store=finished, out="o", arm="feat", student="mobilenet:cut=11", teacher=teacher)
    with pytest.raises(UserError, match="holds attention of layer features.9, mobilenet:cut=11,width=0.35 needs features.4"):
        open_store(config)
    config = replace(config, student="mobilenet:cut=5")
    open_store(config)
    made = distill_task(config, open_teacher_of(config))
    assert config.live and made.objective.logits == "live" and made.objective.alpha == 0
    student = build(made.spec, 0)
    assert made.objective.tap_channels == (channels_at(student, "features.9"), channels_at(checkpoint.load(teacher), "features.9"))
    with pytest.raises(UserError, match="say where it is with --teacher DIR"):
        open_teacher_of(replace(config, teacher=None))
    with pytest.raises(UserError, match="give one of them"):
        DistillConfig(store=finished, out="o", arm="kd+feat", logits="views")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_makes_no_sense_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match="feature-weight must be"):
        replace(FEATURES, feature_weight=weight)
