"""Test images: read before the first epoch, numbered as the store is, judged once."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from igkd.base import run_directory
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.teacher import TeacherConfig
from igkd.images import drawn_shapes
from igkd.images.open import open_images
from igkd.store import Store
from igkd.training.held_out import also_trained_on, decoded_test_split, read_unseen, unseen_by_student, unseen_by_teacher
from igkd.training.identity import judged_otherwise
from igkd.training.teacher_data import teacher_task
from tests.helpers.pictures import pictures
from tests.helpers.stores import tiny_plan


def truncate(root: Path, name: str) -> Path:
    path = next(root.rglob(name))
    path.write_bytes(path.read_bytes()[:200])
    return path


NO_PARTS: dict[str, Any] = {"files": []}


def judged(images: str, **changes: Any) -> tuple[DistillConfig, Store]:
    plan = tiny_plan(shape=(32, 32), classes=drawn_shapes.CLASSES)
    return DistillConfig(**{"store": "s", "out": "o", "test_images": images} | changes), Store("s", plan, NO_PARTS)


def test_test_images_are_judged_by_the_stores_numbers_and_decoded_once(tmp_path: Path) -> None:
    images = pictures(tmp_path, "test", 30)
    found = unseen_by_student(*judged(images))
    assert found is not None and found.left_out == ()
    assert found.samples.labels.tolist() == [drawn_shapes.label(int(path.stem)) for path in sorted(tmp_path.rglob("*.png"))]
    hits = decoded_test_split.cache_info().hits
    other = read_unseen(images, drawn_shapes.CLASSES[::-1], (32, 32), False, "refuse")
    assert decoded_test_split.cache_info().hits == hits + 1
    assert torch.equal(other.samples.labels, 9 - found.samples.labels) and other.samples.pixels is found.samples.pixels
    assert unseen_by_student(*judged(images, test_images=None)) is None


def test_test_images_that_the_store_has_are_counted(finished: str) -> None:
    samples, _ = (store := Store.open(finished)).samples()
    other = dataclasses.replace(samples, pixels=torch.cat([samples.pixels[:1], samples.pixels[1:] ^ 1]))
    assert [also_trained_on(one, store)[0].split(" are ")[0] for one in (samples, other)] == ["26 of 26", "1 of 26"]
    assert also_trained_on(other.select(np.arange(1, 5)), store) == ()


def test_what_is_wrong_with_test_images_is_one_sentence(tmp_path: Path) -> None:
    images = pictures(tmp_path / "many", "test", 30)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"test_images": "shapes:test=0"}, "no images in split 'test'"),
        ({"test_images": "shapes:test=1", "maps": 5}, "has one test image, and --maps 5 compares"),
        (
            {"test_images": pictures(tmp_path / "few", "test", 7)},
            "knows 10 classes, .* has 7, not .*; give test images of the same classes",
        ),
    ]
    for changes, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            unseen_by_student(*judged(images, **changes))
        assert "\n" not in str(caught.value)
    config, store = judged(images)
    with pytest.raises(
        UserError, match="is 32x32 pixels .* where 16x16 is expected; test images must have the training images' size"
    ) as caught:
        unseen_by_student(config, Store("s", dataclasses.replace(store.plan, image_shape=(16, 16)), NO_PARTS))
    assert "--image-size" not in str(caught.value)
    scaled = unseen_by_student(config, Store("s", dataclasses.replace(store.plan, image_shape=(16, 16), resize=True), NO_PARTS))
    assert scaled is not None and scaled.samples.shape == (16, 16)


def test_a_truncated_test_image_is_refused_or_left_out_and_its_repair_is_seen(tmp_path: Path) -> None:
    images = pictures(tmp_path, "test", 30)
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
    pictures(tmp_path, "train", 20)
    images = pictures(tmp_path, "test", 10)
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
    images = pictures(tmp_path, "test", 10)
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
