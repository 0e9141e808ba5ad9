"""What a training job finds before its first epoch: classes, test images, normalisation, ingest."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from igkd.base import provenance, run_directory
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.config.teacher import TeacherConfig
from igkd.images import drawn_shapes
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build, parameter_count
from igkd.networks.renumbered import renumbered
from igkd.store import Store, compute
from igkd.training.held_out import decoded_test_split, read_unseen, unseen_by_student, unseen_by_teacher
from igkd.training.identity import decided, judged_otherwise
from igkd.training.run import finish_run
from igkd.training.student_data import distill_task, open_teacher_of, student_line
from igkd.training.student_rows import look_through, training_rows
from igkd.training.task import Moments, every
from igkd.training.teacher_data import teacher_task
from tests.helpers.stores import make_store, tiny_plan
from tests.helpers.training import random_samples


def folder(root: Path, split: str, count: int) -> str:
    """Images of the built-in shapes, of which image i is named i: as in every directory, the classes are in the alphabet's order."""
    for i in range(count):
        path = root / split / drawn_shapes.CLASSES[drawn_shapes.label(i)] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn_shapes.draw(0, "test", i)[0]).save(path)
    return f"folder:{root}"


def truncate(root: Path, name: str) -> Path:
    path = next(root.rglob(name))
    path.write_bytes(path.read_bytes()[:200])
    return path


# Classes


def test_a_stores_labels_number_the_logits_whatever_order_the_images_classes_are_in(teacher: str, tmp_path: Path) -> None:
    source = open_images(folder(tmp_path, "train", 40))
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


# Test images


def judged(images: str, **changes: Any) -> tuple[DistillConfig, Store]:
    plan = tiny_plan(shape=(32, 32), classes=drawn_shapes.CLASSES)
    return DistillConfig(**{"store": "s", "out": "o", "test_images": images} | changes), Store("s", plan, {})


def test_test_images_are_judged_by_the_stores_numbers_and_decoded_once(tmp_path: Path) -> None:
    images = folder(tmp_path, "test", 30)
    found = unseen_by_student(*judged(images))
    assert found is not None and found.left_out == ()
    assert found.samples.labels.tolist() == [drawn_shapes.label(int(path.stem)) for path in sorted(tmp_path.rglob("*.png"))]
    hits = decoded_test_split.cache_info().hits
    other = read_unseen(images, drawn_shapes.CLASSES[::-1], (32, 32), False, "refuse")
    assert decoded_test_split.cache_info().hits == hits + 1
    assert torch.equal(other.samples.labels, 9 - found.samples.labels) and other.samples.pixels is found.samples.pixels
    assert unseen_by_student(*judged(images, test_images=None)) is None


def test_what_is_wrong_with_test_images_is_one_sentence(tmp_path: Path) -> None:
    images = folder(tmp_path / "many", "test", 30)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"test_images": "shapes:test=0"}, "no images in split 'test'"),
        ({"test_images": "shapes:test=1", "maps": 5}, "has one test image, and --maps 5 compares"),
        ({"test_images": folder(tmp_path / "few", "test", 7)}, "knows 10 classes, .* has 7, not .*; give test images of the same classes"),
    ]
    for changes, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            unseen_by_student(*judged(images, **changes))
        assert "\n" not in str(caught.value)
    config, store = judged(images)
    with pytest.raises(
        UserError, match="is 32x32 pixels .* where 16x16 is expected; test images must have the training images' size"
    ) as caught:
        unseen_by_student(config, Store("s", dataclasses.replace(store.plan, image_shape=(16, 16)), {}))
    assert "--image-size" not in str(caught.value)
    scaled = unseen_by_student(config, Store("s", dataclasses.replace(store.plan, image_shape=(16, 16), resize=True), {}))
    assert scaled is not None and scaled.samples.shape == (16, 16)


def test_a_truncated_test_image_is_refused_or_left_out_and_its_repair_is_seen(tmp_path: Path) -> None:
    images = folder(tmp_path, "test", 30)
    path = next(tmp_path.rglob("004.png"))
    whole = path.read_bytes()
    assert unseen_by_student(*judged(images)) is not None
    truncate(tmp_path, "004.png")
    with pytest.raises(UserError, match="004.png.*does not decode.*--bad-images skip"):
        unseen_by_student(*judged(images))
    found = unseen_by_student(*judged(images, bad_images="skip"))
    assert found is not None and len(found.samples) == 29 and "004.png" in found.left_out[0]
    path.write_bytes(whole)
    mended = unseen_by_student(*judged(images))
    assert mended is not None and len(mended.samples) == 30 and mended.fingerprint != found.fingerprint


def test_a_teachers_test_images_have_the_size_of_its_training_images(tmp_path: Path) -> None:
    folder(tmp_path, "train", 20)
    images = folder(tmp_path, "test", 10)
    config = TeacherConfig(images=images, out="o")
    assert len(unseen_by_teacher(config).samples) == 10
    path = next((tmp_path / "test").rglob("004.png"))
    Image.new("RGB", (40, 32)).save(path)
    with pytest.raises(UserError, match="004.png.* is 32x40 pixels .* where 32x32 is expected; test images must"):
        unseen_by_teacher(config)
    assert unseen_by_teacher(dataclasses.replace(config, image_size=16)).samples.shape == (16, 16)
    assert len(unseen_by_teacher(dataclasses.replace(config, bad_images="skip")).samples) == 9
    assert teacher_task(config).test is None  # what reads them is given by the job


def test_a_run_that_was_judged_otherwise_says_so(tmp_path: Path) -> None:
    images = folder(tmp_path, "test", 10)
    config = DistillConfig(store="s", out="o", test_images=images)
    row = {"test": {"images_fingerprint": open_images(images).fingerprint("test")}, "config": {"maps": 0}}
    assert judged_otherwise([(row, config)]) == []
    assert len(judged_otherwise([(row, dataclasses.replace(config, maps=4))] * 3)) == 3
    next(tmp_path.rglob("004.png")).unlink()
    (said,) = judged_otherwise([(row, config)])
    assert f"igkd evaluate --checkpoint o --images {images}" in said
    assert judged_otherwise([(row, dataclasses.replace(config, test_images="folder:/nowhere"))]) == []  # it was there


def test_what_is_judged_does_not_make_another_run(tmp_path: Path) -> None:
    config = DistillConfig(store="s", out=str(tmp_path / "o"), test_images="a")
    run_directory.claim(tmp_path / "o", config, {"store_fingerprint": "f"})
    changed = dataclasses.replace(config, test_images="b", maps=7, bad_images="skip", teacher="t")
    assert run_directory.claim(tmp_path / "o", changed, {"store_fingerprint": "f"}) is None
    with pytest.raises(UserError, match="epochs was 100 and is now 7"):
        run_directory.claim(tmp_path / "o", dataclasses.replace(changed, epochs=7), {"store_fingerprint": "f"})


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
