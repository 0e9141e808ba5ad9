"""What a training job finds before its first epoch: classes, test images, normalisation, ingest."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from igkd.base import provenance, run_directory
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.images import drawn_shapes
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build, parameter_count
from igkd.networks.renumbered import renumbered
from igkd.store import Store, compute
from igkd.training.identity import decided
from igkd.training.run import finish_run
from igkd.training.student_data import distill_task, open_teacher_of, student_line
from igkd.training.student_rows import look_through, training_rows
from igkd.training.task import Moments, every
from tests.helpers.pictures import pictures
from tests.helpers.stores import make_store, tiny_plan
from tests.helpers.training import random_samples

# Classes


def test_a_stores_labels_number_the_logits_whatever_order_the_images_classes_are_in(teacher: str, tmp_path: Path) -> None:
    source = open_images(pictures(tmp_path, "train", 40))
    assert list(source.classes) == sorted(drawn_shapes.CLASSES) != list(drawn_shapes.CLASSES)
    config = PrecomputeConfig(images=str(source), teacher=teacher, store="s", engine="captum", rows_per_file=7)
    plan, selection = compute.make_plan(config, source, checkpoint.load(teacher), "sha")
    assert plan.classes == drawn_shapes.CLASSES and plan.teacher_parameters == parameter_count(checkpoint.load(teacher))
    for part in range(plan.parts):
        rows = compute.read_rows(source, plan, selection.part(plan, part))
        assert rows["label"].tolist() == [drawn_shapes.label(int(Path(name).stem)) for name in rows["name"]]


def test_classes_that_only_one_side_names_keep_their_names(teacher: str) -> None:
    model, source = checkpoint.load(teacher), open_images("shapes:train=30,test=5")
    model.spec = dataclasses.replace(model.spec, classes=tuple("0123456789"))
    config = PrecomputeConfig(images=str(source), teacher=teacher, store="s", engine="captum")
    assert compute.make_plan(config, source, model, "sha")[0].classes == drawn_shapes.CLASSES


def test_a_teacher_of_the_same_classes_answers_in_the_students_order(teacher: str) -> None:
    model = checkpoint.load(teacher)
    order = np.random.default_rng(0).permutation(10)
    classes = tuple(drawn_shapes.CLASSES[i] for i in order)
    other = renumbered(model, "t", "s", classes, "")
    pixels = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(other(pixels), model(pixels)[:, order]) and other.spec.classes == classes
    assert renumbered(model, "t", "s", drawn_shapes.CLASSES, "") is model


def test_a_teacher_whose_classes_are_not_in_the_stores_order_is_not_its_teacher(finished: str, teacher: str, tmp_path: Path) -> None:
    model = checkpoint.load(teacher)
    model.spec = dataclasses.replace(model.spec, classes=drawn_shapes.CLASSES[::-1])
    checkpoint.save(model, tmp_path, {})  # the same weights
    config = DistillConfig(store=finished, out="o", teacher=teacher)
    assert open_teacher_of(config) is not None
    with pytest.raises(UserError, match="its classes are in another order"):
        open_teacher_of(dataclasses.replace(config, teacher=str(tmp_path)))


# Normalisation


def test_moments_do_not_depend_on_the_parts_and_are_torchs() -> None:
    pixels = random_samples(600, size=8).pixels
    whole, parts = Moments(), Moments()
    whole.add(pixels)
    for start in range(0, 600, 7):
        parts.add(pixels[start : start + 7])
    assert whole.normalisation() == parts.normalisation()
    real = pixels.double() / 255
    for ours, torchs in zip(whole.normalisation(), (real.mean(dim=(0, 2, 3)), real.std(dim=(0, 2, 3))), strict=True):
        assert ours == pytest.approx(torchs.tolist(), abs=6e-5)
    black = Moments()
    black.add(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert black.normalisation() == ((0, 0, 0), (1e-4, 1e-4, 1e-4))


@pytest.mark.parametrize("count", [1, 2, 9_999, 10_000, 10_001, 15_000, 19_999, 20_000, 20_001, 45_000, 1_281_167])
def test_at_most_ten_thousand_images_are_looked_at(count: int) -> None:
    chosen = len(range(0, count, every(count)))
    assert chosen <= 10_000 and (chosen == count or chosen > 5_000)


def test_streamed_and_resident_students_normalise_alike(finished: str) -> None:
    """The validation images are not among those looked at, nor is it the first part alone."""
    config = DistillConfig(store=finished, out="o", arm="student", normalise=True, batch_size=4)
    resident, stream = (distill_task(dataclasses.replace(config, ingest=ingest)) for ingest in ("resident", "stream"))
    assert stream.train is None and resident.train is not None
    assert stream.spec == resident.spec and stream.spec.mean != (0, 0, 0)
    assert stream.validation.ids.tolist() == resident.validation.ids.tolist()
    samples, held_out = Store.open(finished).samples()
    for step in (1, 2, 3, 5, 50):
        expected = Moments()
        expected.add(samples.pixels[torch.from_numpy(~held_out)][::step])
        assert look_through(Store.open(finished), step)[1].normalisation() == expected.normalisation()


# Ingest


def test_ingest_is_decided_once(tmp_path: Path) -> None:
    config = DistillConfig(store="s", out=str(tmp_path / "o"))
    small, large = (Store("s", tiny_plan(), {"rows": rows}) for rows in (10, 10**12))
    assert [decided(config, store).ingest for store in (small, large)] == ["resident", "stream"]
    run_directory.claim(tmp_path / "o", decided(config, small), {})
    assert decided(config, large).ingest == "resident"
    assert run_directory.claim(tmp_path / "o", decided(config, large), {}) is None
    with pytest.raises(UserError, match="ingest was 'resident' and is now 'stream'"):
        run_directory.claim(tmp_path / "o", decided(dataclasses.replace(config, ingest="stream"), small), {})


# The control "other"


@pytest.fixture(scope="module")
def single(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of one row a file, two of which are validation rows."""
    store = str(tmp_path_factory.mktemp("single") / "store")
    config = PrecomputeConfig(
        images="shapes:train=24,test=5", teacher=teacher, store=store, limit=9, steps=1, method="input-x-gradient", rows_per_file=1
    )
    make_store(config)
    return store


@pytest.mark.parametrize("setting", [{"content": "other"}, {"aligned": False}])
@pytest.mark.parametrize("name", ["single", "finished"])
def test_streamed_controls_have_another_images_map(name: str, setting: dict[str, Any], request: pytest.FixtureRequest) -> None:
    store = Store.open(request.getfixturevalue(name))
    samples, held_out = store.samples()
    own = {int(i): ig for i, ig in zip(samples.ids, samples.ig, strict=True)}  # type: ignore[arg-type]
    config = DistillConfig(store=store.uri, out="o", **setting)
    seen = []
    for part in range(store.plan.parts):
        rows = training_rows(config, store, part)
        seen += rows.ids.tolist()
        for i, ig in zip(rows.ids.tolist(), rows.ig if rows.ig is not None else (), strict=True):
            givers = [other for other, map_ in own.items() if torch.equal(map_, ig)]
            assert i not in givers and len(givers) == 1 and not held_out[samples.ids == givers[0]].any()
    assert sorted(seen) == sorted(samples.ids[~held_out].tolist())
    plain = DistillConfig(store=store.uri, out="o")
    assert all(
        torch.equal(own[int(i)], ig) for i, ig in zip(*[getattr(training_rows(plain, store, 0), k) for k in ("ids", "ig")], strict=True)
    )


# The teacher that was used


def test_compression_is_against_the_teacher_that_was_used(tmp_path: Path) -> None:
    student = build(NetworkSpec(classes=("a", "b"), image_shape=(32, 32), name="mobilenet:cut=5,width=0.35"), 0)
    checkpoint.save(student, tmp_path / "outcome" / "model", {})
    (tmp_path / "outcome" / "outcome.json").write_text(json.dumps({"history": [], "images": {}}))
    config, started = DistillConfig(store="s", out="o"), provenance.now()
    row = finish_run("distill", config, tmp_path, tmp_path / "outcome", "c", started, {}, teacher_parameters=25_000_000)
    assert row["compression"] == round(25_000_000 / parameter_count(student), 2)
    assert finish_run("teacher", config, tmp_path, tmp_path / "outcome", "c", started, {})["compression"] == 1


# The first line


def test_a_students_first_line_says_what_is_in_the_store_and_how_many_steps_that_is(teacher: str, tmp_path: Path) -> None:
    made = PrecomputeConfig(images="shapes:train=100,test=5", teacher=teacher, store=str(tmp_path), steps=2, engine="captum")
    make_store(made)
    config, store = DistillConfig(store=made.store, out="o", epochs=3, batch_size=30), Store.open(made.store)
    line = "100 pictures of 10 classes in the store, 10 of them held out for validation; 3 epochs of 3 steps are 9 steps, for mobilenet:"
    assert student_line(config, store).startswith(line)
    half = student_line(dataclasses.replace(config, share=0.5), store)
    assert "3 epochs of 2 steps are 6 steps on 45 of the others, for mobilenet:cut=5" in half
