"""Stored logits of crops are a live teacher's, and students learn from those of the crops that they see."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd.base.errors import UserError
from igkd.config.optimisation import FewCrops, Objective
from igkd.images.views import crop_flip, every_crop, few_crops
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build
from igkd.store import Store, views
from igkd.training.augment import draw, logits_of_crops
from igkd.training.batches import Batch
from igkd.training.identity import decided, fingerprints, identity
from igkd.training.loop import compute_loss, teach
from igkd.training.student_data import crops_of, distill_task, open_store
from tests.helpers.training import learner, loss_of, random_samples, recipe
from tests.helpers.views import view_student


@pytest.mark.parametrize("asked", ["all", "5"])
def test_views_are_what_a_live_teacher_says(viewed: dict[str, str], teacher: str, asked: str) -> None:
    """Of 200 random crops and more, of every seed and epoch, whole or shared out: equal up to the rounding of float16."""
    config = decided(view_student(viewed[asked]), Store.open(viewed[asked]))
    assert config.logits == "views"
    task = distill_task(config)
    assert task.train is not None and task.train.signals["views"] is not None
    model, compared = checkpoint.load(teacher).to(memory_format=torch.channels_last), 0
    with torch.no_grad():
        for seed, epoch in ((0, 1), (0, 2), (7, 1), (3, 50), (3, 51), (4, 1), (5, 2), (6, 3), (8, 4), (9, 5), (10, 6)):
            draws = draw(seed, epoch, task.train.ids, task.train.shape, task.optimisation, task.objective)
            for mine in (np.arange(0, len(task.train), 2), np.arange(1, len(task.train), 2)):
                batch = Batch(task.train.select(mine), draws.select(torch.from_numpy(mine)), len(mine))
                clean = crop_flip(batch.samples.pixels, batch.draws.view).float() / 255
                stored = teach(learner(model, task.optimisation, task.objective), batch, clean, frozenset({"logits"}))[0]
                asked_now = teach(
                    learner(model, task.optimisation, replace(task.objective, logits="live"), teacher=model),
                    batch,
                    clean,
                    frozenset({"logits"}),
                )[0]
                assert stored is not None and asked_now is not None
                rounding = 2**-11 * asked_now.abs() + 2e-5  # half a unit of float16; kernels of other batches in float32
                assert ((stored - asked_now).abs() <= rounding).all()
                compared += len(mine)
    assert compared >= 200


@pytest.mark.parametrize("asked", ["all", "5"])
def test_the_loss_with_views_is_the_live_one_at_low_resolution_and_with_what_only_the_student_sees(
    viewed: dict[str, str], teacher: str, asked: str
) -> None:
    """The teacher sees the whole crop, without overlay and cutout."""
    config = view_student(viewed[asked], logits="views", arm="kd+ig", overlay=0.5, cutout=8, alpha=0.9, low_resolution_epochs=1)
    task = distill_task(config)
    assert task.train is not None
    network, model = build(task.spec, 0), checkpoint.load(teacher)
    batch = Batch(task.train, draw(1, 1, task.train.ids, task.train.shape, task.optimisation, task.objective), len(task.train))
    losses = [
        compute_loss(
            learner(network, task.optimisation, replace(task.objective, logits=logits), 1, teacher=model), batch, 1, 0.75,
        )[0].item()
        for logits in ("views", "live", "image")
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and abs(losses[0] - losses[2]) > 0.01 * losses[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 99), st.data())
def test_a_smaller_padding_finds_its_crops_among_those_of_a_larger_one(padding: int, more: int, seed: int, data: st.DataObject) -> None:
    """Every entry of the table says which crop it is; what is looked up has to be the crop that is seen."""
    stored = every_crop(padding + more)
    side = 2 * (padding + more) + 1
    names = torch.stack([stored.dy, stored.dx, stored.flip.long()], dim=1).half().view(1, side, side, 2, 3)
    ids = np.array(data.draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=6)))
    draws = draw(seed, 3, ids, (32, 32), recipe(padding=padding), Objective())
    found = logits_of_crops(names.expand(len(ids), -1, -1, -1, -1), draws)
    assert torch.equal(found, torch.stack([draws.view.dy, draws.view.dx, draws.view.flip.long()], dim=1).float())


def test_few_crops_are_the_same_for_all_runs_and_each_is_seen_as_often(viewed: dict[str, str]) -> None:
    crops, ids = FewCrops(count=5, seed=3), np.arange(400)
    stored = few_crops(crops, ids, 4, (32, 32))
    other = few_crops(crops, ids[::-1].copy(), 4, (32, 32))
    assert torch.equal(stored.dy, other.dy.flip(0)) and stored.dy.shape == (400, 5)
    assert {int(v) for v in stored.dx.flatten()} == set(range(-4, 5)) and 0.4 < stored.flip.float().mean() < 0.6
    how, objective = recipe(padding=4), Objective(crops=crops)
    seen = [draw(seed, epoch, ids, (32, 32), how, objective) for seed in (0, 1) for epoch in (1, 2, 3)]
    for one in seen:
        rows = torch.arange(400)
        assert torch.equal(one.view.dy, stored.dy[rows, one.crop]) and torch.equal(one.view.flip, stored.flip[rows, one.crop])
    counts = torch.bincount(torch.cat([one.crop for one in seen]), minlength=5)
    assert counts.sum() == 2400 and (counts - 480).abs().max() < 4.5 * np.sqrt(480)
    assert not torch.equal(seen[0].crop, seen[1].crop) and not torch.equal(seen[0].crop, seen[3].crop)


def test_every_crop_is_once_in_the_order_of_the_table() -> None:
    every = every_crop(1)
    rows = list(zip(every.dy.tolist(), every.dx.tolist(), every.flip.tolist(), strict=True))
    assert rows[:4] == [(-1, -1, False), (-1, -1, True), (-1, 0, False), (-1, 0, True)] and len(set(rows)) == 18 == len(rows)


def test_attention_of_another_size_is_interpolated() -> None:
    """A student that sees 3/4 of the resolution has 3/4 of its teacher's cells; a plain map stays plain, and of norm 1."""
    samples = random_samples(6, size=16)
    samples = samples.with_signals(attention=torch.full((6, 8, 8), 1 / 8))
    model = build(NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name="mobilenet:cut=5,width=0.35"), 0)
    objective = Objective(gamma=1.0, tap="features.9")
    whole, _ = loss_of(model, samples, objective, seed=0, epoch=1, padding=0)
    small, _ = loss_of(model, samples, objective, seed=0, epoch=1, padding=0, scale=0.75)
    assert np.isfinite([whole.item(), small.item()]).all() and whole.item() != small.item()


# What becomes of `auto`


def test_what_a_run_learns_from_is_decided_once(viewed: dict[str, str], finished: str, tmp_path: Path) -> None:
    uri = shutil.copytree(finished, tmp_path / "store")
    begun = decided(view_student(str(uri), out=str(tmp_path / "run")), Store.open(str(uri)))
    assert begun.logits == "image" and identity(begun, fingerprints(begun)).keys() == {"store_fingerprint"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"logits": "image"}')
    later = Store.open(viewed["all"])
    assert decided(view_student(viewed["all"], out=str(tmp_path / "run")), later).logits == "image", "views that came after it began"
    new = decided(view_student(viewed["all"]), later)
    assert new.logits == "views" and "views_fingerprint" in identity(new, fingerprints(new))
    without = decided(view_student(viewed["all"], arm="student"), later)
    assert without.logits == "image" and "views_fingerprint" not in identity(without, fingerprints(without))


@pytest.mark.parametrize(
    ("given", "views_there", "expected"),
    [
        ({"logits": "crop"}, True, "views"),
        ({"logits": "crop"}, False, "live"),
        ({"live": True}, True, "live"),
        ({"live": True, "logits": "image"}, True, "live"),
        ({"logits": "image"}, True, "image"),
    ],
)
def test_where_the_logits_come_from(viewed: dict[str, str], finished: str, given: dict[str, Any], views_there: bool, expected: str) -> None:
    uri = viewed["all"] if views_there else finished
    assert decided(view_student(uri, **given), Store.open(uri)).which_logits == expected


def test_live_and_views_cannot_both_be_asked_for() -> None:
    with pytest.raises(UserError, match="give one of them"):
        view_student("s", live=True, logits="views")


def test_a_store_without_views_is_not_taken_for_one_with(finished: str) -> None:
    with pytest.raises(
        UserError, match=r"has no logits of crops, or not all of them yet: add them by .*--views all, or choose --logits image"
    ):
        open_store(view_student(finished, logits="views"))


@pytest.mark.parametrize(
    ("asked", "padding", "allowed"), [("all", 4, True), ("all", 2, True), ("all", 5, False), ("5", 4, True), ("5", 3, False)]
)
def test_a_padding_that_the_views_do_not_have(viewed: dict[str, str], asked: str, padding: int, allowed: bool) -> None:
    config = view_student(viewed[asked], logits="views", padding=padding)
    if allowed:
        assert open_store(config).views is not None
        return
    with pytest.raises(UserError, match=rf"crops with a padding of 4, not {padding}: choose --padding 4, or --logits image"):
        open_store(config)


def test_students_of_few_crops_keep_to_them(viewed: dict[str, str]) -> None:
    assert crops_of(Store.open(viewed["all"])) is None and crops_of(Store.open(viewed["5"])) == FewCrops(count=5, seed=views.SEED)
    task = distill_task(view_student(viewed["5"], logits="views"))
    assert task.objective.crops == FewCrops(count=5, seed=views.SEED)
    assert distill_task(view_student(viewed["5"], logits="image")).objective.crops is None
