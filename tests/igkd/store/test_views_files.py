"""The files of views: added to a finished store, damaged, refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from igkd import store
from igkd.base.errors import UserError
from igkd.config.optimisation import Objective
from igkd.config.precompute import PrecomputeConfig
from igkd.images.samples import Samples
from igkd.images.views import View
from igkd.networks import checkpoint
from igkd.store import Store, forwards, views
from igkd.training.augment import Draws, draw
from igkd.training.student_data import distill_task
from tests.helpers.training import recipe
from tests.helpers.views import view_student


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
    rows = views.views_of_part(forwards.answering(checkpoint.load(teacher), "torch"), opened, plan, 3)
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


def test_the_columns_of_a_control_come_from_one_other_image(viewed: dict[str, str]) -> None:
    """As published: what the teacher says is another image's, the views too."""
    task = distill_task(view_student(viewed["all"], logits="views", aligned=False, recipe="paper-as-published"))
    right = distill_task(view_student(viewed["all"], logits="views"))
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
