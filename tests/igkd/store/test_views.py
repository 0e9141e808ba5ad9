import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd import store
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import FewCrops, Objective
from igkd.config.precompute import PrecomputeConfig
from igkd.images.samples import Samples
from igkd.images.views import View, crop_flip, every_crop, few_crops
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.store import Store, views
from igkd.training.augment import Draws, draw, logits_of_crops
from igkd.training.batches import Batch
from igkd.training.identity import decided, fingerprints, identity
from igkd.training.loop import compute_loss, teach
from igkd.training.student_data import crops_of, distill_task, open_store
from tests.helpers.stores import add_views
from tests.helpers.training import learner, loss_of, random_samples, recipe

SETTINGS = {"learning_rate": 0.01, "epochs": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def viewed(finished: str, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two copies of a store, with the logits of all crops and of five."""
    found = {}
    for asked in ("all", "5"):
        found[asked] = str(tmp_path_factory.mktemp("viewed") / "store")
        shutil.copytree(finished, found[asked])
        add_views(found[asked], teacher, asked)
    return found


def student(uri: str, **changes: Any) -> DistillConfig:
    return DistillConfig(**{"store": uri, "out": "nowhere", "arm": "kd"} | SETTINGS | changes)


@pytest.mark.parametrize("asked", ["all", "5"])
def test_views_are_what_a_live_teacher_says(viewed: dict[str, str], teacher: str, asked: str) -> None:
    """Of 200 random crops and more, of every seed and epoch, whole or shared out: equal up to the rounding of float16."""
    config = decided(student(viewed[asked]), Store.open(viewed[asked]))
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
    config = student(viewed[asked], logits="views", arm="kd+ig", overlay=0.5, cutout=8, alpha=0.9, low_resolution_epochs=1)
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
    begun = decided(student(str(uri), out=str(tmp_path / "run")), Store.open(str(uri)))
    assert begun.logits == "image" and identity(begun, fingerprints(begun)).keys() == {"store_fingerprint"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"logits": "image"}')
    later = Store.open(viewed["all"])
    assert decided(student(viewed["all"], out=str(tmp_path / "run")), later).logits == "image", "views that came after it began"
    new = decided(student(viewed["all"]), later)
    assert new.logits == "views" and "views_fingerprint" in identity(new, fingerprints(new))
    without = decided(student(viewed["all"], arm="student"), later)
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
    assert decided(student(uri, **given), Store.open(uri)).which_logits == expected


def test_live_and_views_cannot_both_be_asked_for() -> None:
    with pytest.raises(UserError, match="give one of them"):
        student("s", live=True, logits="views")


def test_a_store_without_views_is_not_taken_for_one_with(finished: str) -> None:
    with pytest.raises(
        UserError, match=r"has no logits of crops, or not all of them yet: add them by .*--views all, or choose --logits image"
    ):
        open_store(student(finished, logits="views"))


@pytest.mark.parametrize(
    ("asked", "padding", "allowed"), [("all", 4, True), ("all", 2, True), ("all", 5, False), ("5", 4, True), ("5", 3, False)]
)
def test_a_padding_that_the_views_do_not_have(viewed: dict[str, str], asked: str, padding: int, allowed: bool) -> None:
    config = student(viewed[asked], logits="views", padding=padding)
    if allowed:
        assert open_store(config).views is not None
        return
    with pytest.raises(UserError, match=rf"crops with a padding of 4, not {padding}: choose --padding 4, or --logits image"):
        open_store(config)


def test_students_of_few_crops_keep_to_them(viewed: dict[str, str]) -> None:
    assert crops_of(Store.open(viewed["all"])) is None and crops_of(Store.open(viewed["5"])) == FewCrops(count=5, seed=views.SEED)
    task = distill_task(student(viewed["5"], logits="views"))
    assert task.objective.crops == FewCrops(count=5, seed=views.SEED)
    assert distill_task(student(viewed["5"], logits="image")).objective.crops is None


# The files


def test_adding_views_leaves_the_store_as_it_is(viewed: dict[str, str], finished: str) -> None:
    assert store.verify(viewed["all"]) == [] == store.verify(viewed["5"])
    for path in Path(finished).iterdir():
        assert (Path(viewed["all"]) / path.name).read_bytes() == path.read_bytes()
    assert Store.open(viewed["all"]).fingerprint() == Store.open(finished).fingerprint()
    described = store.describe(viewed["all"])["views"]
    assert described["crops"] == "all 162" and described["padding"] == 4 and described["engine"] == "torch" and described["bytes"] > 0
    assert "5 random ones" in store.describe(viewed["5"])["views"]["crops"] and "views" not in store.describe(finished)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "views-00001.parquet").unlink(), "views-00001.parquet is missing"),
        (lambda d: (d / "views-00003.parquet").write_bytes(b"PAR1"), r"views-00003.parquet was changed"),
        (lambda d: shutil.copy(d / "views-00001.parquet", d / "views-00004.parquet"), "views-00004.parquet was changed"),
        (lambda d: (d / "views-manifest.json").write_text("{"), "views-manifest.json is damaged or not ours"),
    ],
)
def test_damaged_views_are_named(viewed: dict[str, str], tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    copy = Path(shutil.copytree(viewed["all"], tmp_path / "copy"))
    damage(copy)
    problems = store.verify(str(copy))
    assert len(problems) == 1 and words in problems[0]


def test_views_of_another_store_are_refused(viewed: dict[str, str], tmp_path: Path, store_config: PrecomputeConfig) -> None:
    copy = Path(shutil.copytree(viewed["all"], tmp_path / "copy"))
    plan = replace(Store.open(str(copy)).plan, teacher="another")
    assert plan.identity != Store.open(str(copy)).plan.identity
    for name in ("manifest.json", "plan.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace(Store.open(viewed["all"]).plan.teacher, "another"))
    with pytest.raises(UserError, match=r"the views in .* are of another store or teacher; delete its views-\* files"):
        _ = Store.open(str(copy)).views


def test_unfinished_views_are_none(viewed: dict[str, str], tmp_path: Path, teacher: str) -> None:
    copy = Path(shutil.copytree(viewed["all"], tmp_path / "copy"))
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    (copy / "views-manifest.json").unlink()
    (copy / "views-00003.parquet").unlink()
    assert Store.open(str(copy)).views is None and store.verify(str(copy)) == []
    opened = Store.open(str(copy))
    plan = store.views_plan_of(str(copy))
    assert plan is not None and store.start(str(copy), plan) == [3]
    entries = [store.check_part(str(copy), plan, p, np.arange(p * 7, min(34, p * 7 + 7))) for p in (0, 1, 2, 4)]
    rows = views.views_of_part(views.answering(checkpoint.load(teacher), "torch"), opened, plan, 3)
    store.finish(str(copy), plan, [*entries, store.write_part(str(copy), plan, 3, rows, [])])
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


# What is refused


def test_impossible_views(finished: str) -> None:
    plan = Store.open(finished).plan
    for asked in ("some", "0", "-3", "1e3", "²", ""):
        with pytest.raises(UserError, match="must be all, none, or a number of crops"):
            views.make_views_plan(asked, 4, plan, "torch")
    with pytest.raises(UserError, match="--padding must be between 0 and the 32 pixels"):
        views.make_views_plan("all", 33, plan, "torch")
    large = replace(plan, image_shape=(224, 224), rows=1_281_167)
    with pytest.raises(
        UserError, match=r"at most 64 pixels a side: of these, it would take .* GB and 207,549,054 forward passes; give a number"
    ):
        views.make_views_plan("all", 4, large, "torch")
    assert views.make_views_plan("16", 4, large, "torch").crops == 16
    assert views.make_views_plan("all", 4, replace(plan, image_shape=(64, 64)), "torch").crops == 162


def test_other_views_of_the_same_store_are_refused(viewed: dict[str, str]) -> None:
    plan = views.make_views_plan("7", 4, Store.open(viewed["5"]).plan, "torch")
    with pytest.raises(UserError, match=r"holds views of other settings \(count was 5 and is now 7\)"):
        store.start(viewed["5"], plan)


def test_too_little_disk_is_said_at_once(finished: str, tmp_path: Path) -> None:
    plan = views.make_views_plan("all", 4, Store.open(finished).plan, "torch")
    views.check_space(str(tmp_path / "not" / "yet"), plan)
    views.check_space("s3://bucket/store", plan)
    with pytest.raises(UserError, match=r"the views take about .* GB, and where .* is only .* are free: free some"):
        views.check_space(str(tmp_path), replace(plan, rows=10**13))


def test_logits_that_float16_cannot_hold_are_refused(finished: str) -> None:
    plan = views.make_views_plan("2", 4, Store.open(finished).plan, "torch")
    pixels = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    for wrong in (1e6, float("nan")):

        def answer(crops: torch.Tensor, wrong: float = wrong) -> torch.Tensor:
            logits = torch.zeros(len(crops), plan.classes)
            logits[3, 1] = wrong
            return logits

        with pytest.raises(UserError, match="a crop of image 22 are no numbers"):
            views.view_logits(answer, pixels, np.array([11, 22, 33]), plan)


# Engines


def test_openvino_says_what_torch_says(teacher: str) -> None:
    pytest.importorskip("openvino")
    model = checkpoint.load(teacher)
    pixels = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one = views.answering(checkpoint.load(teacher), "openvino")(pixels)
    assert torch.allclose(one, views.answering(model, "torch")(pixels), atol=1e-4)
    again = views.answering(checkpoint.load(teacher), "openvino")
    assert torch.equal(torch.cat([again(part) for part in pixels.split(64)]), one), "however the images are shared out"
    assert views.choose_forwards(model, pixels, gpu=True) == "torch"
    assert views.choose_forwards(model, pixels, gpu=False).startswith("openvino")


@pytest.mark.parametrize("name", ["mobilenet", "lean:2:8x1,16x1"])
def test_any_network_of_ours_answers_by_openvino(name: str) -> None:
    """Also those whose layers are others while there are gradients."""
    pytest.importorskip("openvino")
    spec = NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name=name)
    pixels = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_torch, by_openvino = (views.answering(build(spec, 1).eval(), engine)(pixels) for engine in ("torch", "openvino"))
    assert torch.allclose(by_torch, by_openvino, atol=1e-4) and by_torch.shape == (9, 3)


def test_a_network_that_openvino_does_not_know_answers_by_torch() -> None:
    class Strange(Classifier):
        def from_normalised(self, x: torch.Tensor) -> torch.Tensor:
            return super().from_normalised(torch.fft.fft2(x).real.contiguous())

    model = Strange(NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name="lean:2:8x1")).eval()
    pixels = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    engine = views.choose_forwards(model, pixels, gpu=False)
    assert views.close_enough(views.answering(model, "torch")(pixels), views.answering(model, engine)(pixels))


def test_bfloat16_has_to_be_close() -> None:
    exact = torch.zeros(2000, 10)
    exact[:, 0] = 1
    assert views.close_enough(exact, exact + 0.099)
    far = exact.clone()
    far[7, 3] += 0.11
    assert not views.close_enough(exact, far)
    exact[:3, 1] = 0.99
    turned = exact.clone()
    turned[:3, 1] = 1.01
    assert not views.close_enough(exact, turned)
    assert views.close_enough(exact[2:], turned[2:])


def test_the_columns_of_a_control_come_from_one_other_image(viewed: dict[str, str]) -> None:
    """As published: what the teacher says is another image's, the views too."""
    task = distill_task(student(viewed["all"], logits="views", aligned=False, recipe="paper-as-published"))
    right = distill_task(student(viewed["all"], logits="views"))
    assert (
        task.train is not None
        and right.train is not None
        and task.train.signals["views"] is not None
        and right.train.signals["views"] is not None
    )
    assert not torch.equal(task.train.signals["views"], right.train.signals["views"])


def test_samples_of_parts_have_their_views(viewed: dict[str, str]) -> None:
    opened = Store.open(viewed["all"])
    whole, _ = opened.samples(views=True)
    some, _ = opened.samples([4, 1], views=True)
    assert whole.signals["views"] is not None and some.signals["views"] is not None and whole.signals["views"].dtype == torch.float16
    places = [int(np.flatnonzero(whole.ids == i)[0]) for i in some.ids]
    assert torch.equal(some.signals["views"], whole.signals["views"][places]) and "views" not in opened.samples([0])[0].signals
    back = Samples.from_columns(some.columns())
    assert torch.equal(back.signals["views"], some.signals["views"])


def test_a_view_of_everything_selects(viewed: dict[str, str]) -> None:
    draws = draw(0, 1, np.arange(5), (32, 32), recipe(), Objective())
    assert isinstance(draws, Draws) and isinstance(draws.view, View) and draws.select(torch.tensor([3, 1])).crop.tolist() == [0, 0]
