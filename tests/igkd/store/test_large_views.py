"""Views of large pictures and of teachers with many classes: stored logits of resized crops, and the largest logits alone."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from igkd import store
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import FewCrops
from igkd.config.precompute import PrecomputeConfig
from igkd.config.teacher import TeacherConfig
from igkd.images import drawn_shapes
from igkd.images.views import few_crops, move
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build
from igkd.store import Store, ViewsPlan, views
from igkd.store.top_logits import TopLogits, largest
from igkd.training.augment import draw
from igkd.training.batches import Batch
from igkd.training.loop import compute_loss, teach
from igkd.training.student_data import crops_of, distill_task, open_store
from igkd.training.teacher_data import teacher_task
from igkd.training.terms.distillation import distillation, distillation_of_top
from tests.helpers.networks import settled
from tests.helpers.pictures import encoded, write_parquet
from tests.helpers.stores import add_views, make_store, tiny_plan
from tests.helpers.training import learner
from tests.helpers.views import view_student

SIDE, CLASSES, CROPS, COUNT = 72, 300, 5, 30
KD = frozenset({"logits"})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher of 300 classes at 72x72 pixels; its store without views, with the largest logits of five crops, and with all of them."""
    root = tmp_path_factory.mktemp("large")
    pictures = [encoded(drawn_shapes.draw(1, "train", i)[0], "PNG") for i in range(COUNT)]
    write_parquet(root / "train-0.parquet", pictures, [i % 10 for i in range(COUNT)], [f"class {i:03d}" for i in range(CLASSES)])
    spec = NetworkSpec(
        classes=tuple(f"class {i:03d}" for i in range(CLASSES)), image_shape=(SIDE, SIDE), name="mobilenet:width=0.35,stride=2"
    )
    checkpoint.save(settled(build(spec, seed=1)), root / "teacher", {})
    found = {name: str(root / name) for name in ("teacher", "bare", "top", "all")}
    images = f"parquet:{root}"
    config = PrecomputeConfig(images=images, teacher=found["teacher"], store=found["bare"], image_size=SIDE, steps=2, rows_per_file=15)
    make_store(replace(config, engine="torch"))
    for name, top in (("top", 32), ("all", 0)):
        shutil.copytree(found["bare"], found[name])
        add_views(found[name], found["teacher"], str(CROPS), top=top)
    return found


def student(uri: str, **changes: Any) -> DistillConfig:
    return view_student(uri, **{"logits": "views", "student": "lean:4:8x1"} | changes)


def asked_and_stored(large: dict[str, str], name: str, seed: int, epoch: int) -> tuple[torch.Tensor, Any]:
    """A live teacher's logits of the crops of one epoch, and what the store has of them."""
    task = distill_task(student(large[name]))
    assert task.train is not None
    model = checkpoint.load(large["teacher"]).to(memory_format=torch.channels_last)
    draws = draw(seed, epoch, task.train.ids, task.train.shape, task.optimisation, task.objective)
    assert draws.view.resized
    batch = Batch(task.train, draws, len(task.train))
    clean = move(task.train.pixels, draws.view).float() / 255
    live = replace(task.objective, logits="live")
    with torch.no_grad():
        asked = teach(learner(model, task.optimisation, live, teacher=model), batch, clean, KD)[0]
        stored = teach(learner(model, task.optimisation, task.objective), batch, clean, KD)[0]
    assert isinstance(asked, torch.Tensor)
    return asked, stored


def half(values: torch.Tensor) -> torch.Tensor:
    """How far float16 may be from values; and kernels of other batches in float32."""
    return 2**-11 * values.abs() + 5e-5


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (3, 2)])
def test_stored_logits_are_what_a_live_teacher_says_of_the_same_resized_crop(large: dict[str, str], seed: int, epoch: int) -> None:
    asked, stored = asked_and_stored(large, "all", seed, epoch)
    assert stored.shape == asked.shape == (27, CLASSES) and ((stored - asked).abs() <= half(asked)).all()
    assert (asked[0] - asked[1]).abs().max() > 100 * half(asked).max(), "logits that differ from crop to crop"


def test_the_largest_logits_and_the_rest_are_those_of_a_live_teacher(large: dict[str, str]) -> None:
    asked, stored = asked_and_stored(large, "top", 0, 1)
    assert isinstance(stored, TopLogits) and stored.logits.shape == (27, 32)
    expected, _ = largest(asked, 32)
    assert ((torch.cat([stored.logits, stored.rest], 1) - expected).abs() <= half(expected)).all()
    assert ((asked.gather(1, stored.classes) - stored.logits).abs() <= half(stored.logits)).all()
    answers = torch.randn(27, CLASSES, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 2.5, 4.0):
        lumped, whole = distillation_of_top(answers, stored, temperature).item(), distillation(answers, asked, temperature).item()
        assert 0 < lumped <= whole * 1.001


def test_a_student_learns_from_the_largest_logits_at_low_resolution_and_with_an_overlay(large: dict[str, str]) -> None:
    """The loss is that of all logits but for what the rest hides; and that of the live teacher where all are stored."""
    losses = {}
    for name, logits in (("top", "views"), ("all", "views"), ("all", "live")):
        config = student(large[name], arm="kd+ig", overlay=0.5, cutout=8, alpha=0.9, temperature=4.0, low_resolution_epochs=1)
        task = distill_task(config)
        assert task.train is not None
        network, objective = build(task.spec, 0), replace(task.objective, logits=logits)
        batch = Batch(task.train, draw(1, 1, task.train.ids, task.train.shape, task.optimisation, objective), len(task.train))
        own = learner(network, task.optimisation, objective, 1, teacher=checkpoint.load(large["teacher"]))
        losses[name, logits] = compute_loss(own, batch, 1, 0.75)[0].item()
    assert losses["all", "views"] == pytest.approx(losses["all", "live"], rel=1e-3)
    assert losses["top", "views"] < losses["all", "views"]


def test_students_see_the_stored_crops_alone(large: dict[str, str]) -> None:
    crops = FewCrops(count=CROPS, seed=views.SEED, resized=True)
    assert crops_of(Store.open(large["top"])) == crops
    task = distill_task(student(large["top"]))
    ids = np.arange(60)
    stored = few_crops(crops, ids, 4, (SIDE, SIDE))
    seen = set()
    for epoch in range(1, 30):
        draws = draw(5, epoch, ids, (SIDE, SIDE), task.optimisation, task.objective)
        rows = torch.arange(60)
        for name in ("dy", "dx", "flip", "height", "width"):
            assert torch.equal(getattr(draws.view, name), getattr(stored, name)[rows, draws.crop])
        seen |= set(draws.crop.tolist())
    assert seen == set(range(CROPS))
    free = distill_task(student(large["top"], logits="image"))
    assert free.objective.crops is None and draw(5, 1, ids, (SIDE, SIDE), free.optimisation, free.objective).view.resized


@pytest.mark.parametrize(
    ("side", "crop", "resized"), [(SIDE, "auto", True), (SIDE, "padded", False), (32, "auto", False), (32, "resized", True)]
)
def test_a_teacher_is_trained_on_such_crops_too(side: int, crop: Any, resized: bool) -> None:
    task = teacher_task(TeacherConfig(images="shapes:train=40,test=5", out="o", image_size=side, crop=crop))
    draws = draw(0, 1, np.arange(5), (side, side), task.optimisation, task.objective)
    assert draws.view.resized is resized


# The files


def test_the_plan_says_what_is_stored(large: dict[str, str]) -> None:
    top, every = (Store.open(large[name]).views for name in ("top", "all"))
    assert top is not None and every is not None
    assert (top.resized, top.padding, top.top, top.places, top.values) == (True, 0, 32, (5,), 35)
    assert (every.top, every.values) == (None, CLASSES)
    assert ViewsPlan.from_json(top.to_json()) == top
    assert top.bytes_per_image == 5 * (2 * 35 + 4 * 32) < every.bytes_per_image / 3
    described = store.describe(large["top"])["views"]
    assert described["kind"] == "resized" and described["largest_logits"] == 32 and "5 random ones" in described["crops"]
    assert store.verify(large["top"]) == [] == store.verify(large["all"])
    assert Store.open(large["top"]).fingerprint() == Store.open(large["bare"]).fingerprint()


def test_plans_of_padded_crops_are_written_as_they_always_were() -> None:
    """So that views begun before there were resized crops go on."""
    plan = views.make_views_plan("all", 4, tiny_plan(shape=(32, 32)), "torch")
    assert sorted(plan.to_json()) == sorted(
        ["ids_sha256", "rows", "rows_per_file", "version", "store", "teacher", "classes", "padding", "count", "seed", "engine"]
    )


def test_a_class_that_the_teacher_has_not_is_refused(large: dict[str, str], tmp_path: Path) -> None:
    """A stranger's file may name any: looked up, it would end the run without a word of why."""
    copy = Path(shutil.copytree(large["top"], tmp_path / "copy"))
    opened = Store.open(str(copy))
    plan = opened.views
    assert plan is not None
    table = pq.read_table(copy / "views-00001.parquet")
    columns = {name: store.to_numpy(table.column(name)) for name in table.column_names}
    columns["view_classes"][3, 2, 1] = CLASSES
    entries = [store.check_part(str(copy), plan, 0, np.arange(15)), store.write_part(str(copy), plan, 1, columns, [])]
    store.finish(str(copy), plan, entries)
    assert store.verify(str(copy)) == ["views-00001.parquet names classes that the teacher has not"]
    with pytest.raises(UserError, match=r"name classes that the teacher has not; see `igkd store verify"):
        distill_task(student(str(copy)))


# What is asked for


@pytest.mark.parametrize(
    ("asked", "side", "crop", "resized"),
    [("all", 64, "auto", False), ("5", 64, "auto", False), ("5", 65, "auto", True), ("5", 65, "padded", False), ("5", 32, "resized", True)],
)
def test_which_crops_are_stored(asked: str, side: int, crop: Any, resized: bool) -> None:
    plan = views.make_views_plan(asked, 4, tiny_plan(shape=(side, side)), "torch", crop)
    assert plan.resized is resized and plan.padding == (0 if resized else 4)


@pytest.mark.parametrize(("classes", "top", "kept"), [(256, 32, None), (257, 32, 32), (1000, 0, None), (300, 300, None), (301, 300, 300)])
def test_how_many_logits_are_stored(classes: int, top: int, kept: int | None) -> None:
    plan = tiny_plan(shape=(224, 224), classes=tuple(map(str, range(classes))))
    assert views.make_views_plan("5", 4, plan, "torch", top=top).top == kept


def test_impossible_wishes() -> None:
    large, small = tiny_plan(shape=(224, 224)), tiny_plan(shape=(32, 32))
    for crop in ("auto", "padded"):
        with pytest.raises(UserError, match=r"--views all is for images of at most 64 pixels a side.*give a number"):
            views.make_views_plan("all", 4, large, "torch", crop)  # type: ignore[arg-type]
    for plan in (large, small):
        with pytest.raises(UserError, match=r"--views all is for padded crops.*give a number, such as --views 16"):
            views.make_views_plan("all", 4, plan, "torch", "resized")
    with pytest.raises(UserError, match="--top must be at least 1, or 0 to keep all logits, not -1"):
        views.make_views_plan("5", 4, small, "torch", top=-1)


def test_a_student_of_other_crops_than_the_stored_ones_is_refused(large: dict[str, str]) -> None:
    assert open_store(student(large["top"], crop="resized", padding=2)).views is not None
    with pytest.raises(UserError, match=r"has the logits of resized crops, not of padded ones: choose --crop resized, or --logits image"):
        open_store(student(large["top"], crop="padded"))


def test_a_temperature_at_which_the_rest_is_not_known_is_refused(large: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"the 32 largest logits .* --temperature 0.5: choose one of at least 1, or --logits image"):
        open_store(student(large["top"], temperature=0.5))
    assert open_store(student(large["all"], temperature=0.5)).views is not None


def test_terms_that_need_the_logits_of_all_classes_are_refused_where_the_largest_are_stored(large: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"the 32 largest logits of crops, and dkd and lskd need those of all classes"):
        open_store(student(large["top"], arm="kd+lskd+dkd"))
    for arm in ("dkd", "lskd"):
        with pytest.raises(UserError, match=f"and {arm} need"):
            open_store(student(large["top"], arm=arm))
        assert open_store(student(large["all"], arm=arm)).views is not None
        assert open_store(student(large["top"], arm=arm, logits="image")).views is not None


@pytest.mark.parametrize("change", [{"top": 0}, {"top": 300}, {"count": None, "resized": True}, {"resized": "yes"}])
def test_a_plan_of_a_stranger(large: dict[str, str], change: dict[str, Any]) -> None:
    plan = Store.open(large["top"]).views
    assert plan is not None
    with pytest.raises((ValueError, TypeError)):
        ViewsPlan.from_json(plan.to_json() | change)
