"""Which images are in which batch, and which batches a network cannot take."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.config.teacher import TeacherConfig
from igkd.networks.network import NetworkSpec, build, values_a_channel
from igkd.store import Store
from igkd.training.batches import epoch_batches, joined
from igkd.training.student_data import check_student, student_spec
from igkd.training.task import check_batch_size
from igkd.training.teacher_data import check_teacher
from tests.helpers.pictures import encoded, picture
from tests.helpers.stores import make_store
from tests.helpers.training import (
    TINY,
    random_samples,
    recipe,
    run,
)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 99), st.integers(1, 99))
def test_batches_hold_every_image_once(count: int, size: int, seed: int, epoch: int) -> None:
    ids = np.arange(count) * 7 + 3
    batches = epoch_batches(seed, epoch, ids, size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    sizes = [len(b) for b in batches]
    assert max(sizes) - min(sizes) <= 1
    if size == 2 and count % 2 and count > 1:
        assert len(sizes) == count // 2 and max(sizes) == 3  # rather than one image alone
    else:
        assert len(sizes) == math.ceil(count / size) and max(sizes) <= size
    assert min(sizes) > 1 or size == 1 or count == 1
    again = epoch_batches(seed, epoch, ids, size)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 80))
def test_a_stream_leaves_no_image_alone(count: int, size: int) -> None:
    given = [{"ids": np.arange(start, min(start + size, count))} for start in range(0, count, size)]
    found = [batch["ids"].tolist() for batch in joined(given)]
    assert sum(found, []) == list(range(count))
    sizes = [len(ids) for ids in found]
    assert set(sizes[:-1]) <= {size} and sizes[-1] <= size + 1
    assert min(sizes) > 1 or size == 1 or count == 1


ONE_PIXEL = replace(TINY, name="mobilenet", image_shape=(8, 8))


@pytest.mark.parametrize(("count", "size"), [(9, 2), (3, 2), (2, 2), (5, 4), (9, 8), (17, 16)])
def test_a_network_whose_last_maps_have_one_pixel_trains_on_any_number_of_images(count: int, size: int) -> None:
    assert values_a_channel(ONE_PIXEL) == 1
    history = run(
        build(ONE_PIXEL, 0),
        random_samples(count, size=8),
        recipe(batch_size=size, epochs=1, padding=0),
        validation=random_samples(1, size=8),
    )
    assert math.isfinite(history[-1]["train_loss"])


@pytest.mark.parametrize(
    ("spec", "scale", "pixels"),
    [
        (TINY, 1.0, 16),
        (ONE_PIXEL, 1.0, 1),
        (replace(TINY, name="mobilenet"), 1.0, 4),
        (replace(TINY, name="mobilenet"), 0.5, 1),
        (replace(TINY, name="mobilenet:stride=2"), 1.0, 1),
        (replace(TINY, name="lean:4:8x1,8x1"), 1.0, 4),
    ],
)
def test_values_a_channel_are_the_pixels_of_the_smallest_maps(spec: NetworkSpec, scale: float, pixels: int) -> None:
    assert values_a_channel(spec, scale) == pixels
    height, width = (round(side * scale) for side in spec.image_shape)
    assert build(spec, 0).network.features(torch.zeros(2, 3, height, width)).shape[2:].numel() == pixels  # the last are the smallest


def test_batches_of_one_are_refused_where_a_channel_has_one_value() -> None:
    with pytest.raises(UserError, match="--batch-size 1 is too small: at 8x8 pixels .* use --batch-size 2"):
        check_batch_size(ONE_PIXEL, recipe(batch_size=1))
    check_batch_size(replace(ONE_PIXEL, image_shape=(10, 10)), recipe(batch_size=1))
    with pytest.raises(UserError, match="at 8x8 pixels"):  # which it sees in its first epoch
        check_batch_size(replace(ONE_PIXEL, image_shape=(10, 10)), recipe(batch_size=1, low_resolution_epochs=1))
    check_batch_size(ONE_PIXEL, recipe(batch_size=2))
    check_batch_size(TINY, recipe(batch_size=1))
    history = run(build(TINY, 0), random_samples(3), recipe(batch_size=1, epochs=1))
    assert math.isfinite(history[-1]["train_loss"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 1, "image_size": 8}, "--batch-size 1 is too small: at 8x8 pixels"),
        ({"batch_size": 1, "image_size": 16, "network": "mobilenet:stride=2"}, "at 16x16 pixels"),
        ({"batch_size": 3, "workers": 4}, "batches of 3 are too small for 4 workers"),
        ({"images": "shapes:train=2", "workers": 3}, "2 training image.* too few for 3 worker"),
        ({"images": "shapes:train=9"}, "0 validation image.* too few"),
    ],
)
def test_a_teacher_is_refused_before_its_pictures_are_read(changes: dict[str, Any], sentence: str) -> None:
    sound: dict[str, Any] = {"images": "shapes:train=60", "out": "o", "batch_size": 8}
    check_teacher(TeacherConfig(**sound))
    check_teacher(TeacherConfig(**sound | {"batch_size": 1}))  # its maps have 4x4 pixels
    with pytest.raises(UserError, match=sentence):
        check_teacher(TeacherConfig(**sound | changes))


def test_pictures_of_one_class_are_refused(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / "photos" / "train" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / "train" / "cat" / f"{number}.png").write_bytes(encoded(picture(number)))
    with pytest.raises(UserError, match="has one class, cat: a classifier needs two"):
        check_teacher(TeacherConfig(images=f"folder:{tmp_path / 'photos'}", out="o", batch_size=8))


def test_a_student_is_refused_before_a_picture_is_read(teacher: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    make_store(PrecomputeConfig(images="shapes:train=40", teacher=teacher, store=store, steps=2, engine="captum"))
    sound: dict[str, Any] = {"store": store, "out": "o", "arm": "kd"}
    for changes, sentence in (
        ({"workers": 5, "batch_size": 4}, "batches of 4 are too small for 5 workers"),
        ({"share": 0.02, "workers": 1}, "1 training image.* too few"),
        ({"workers": 5}, "4 validation image.* too few for 5 worker"),
    ):
        check_student(DistillConfig(**sound), Store.open(store))
        with pytest.raises(UserError, match=sentence):
            check_student(DistillConfig(**sound | changes), Store.open(store))
    small = replace(Store.open(store).plan, image_shape=(8, 8))
    with pytest.raises(UserError, match="at 8x8 pixels"):
        check_batch_size(student_spec(DistillConfig(**sound, student="lean:4:8x1,8x1", batch_size=1), small), recipe(batch_size=1))


def test_the_order_changes_with_epoch_and_seed() -> None:
    ids = np.arange(100)
    orders = [np.concatenate(epoch_batches(seed, epoch, ids, 9)).tolist() for seed in (0, 1) for epoch in (1, 2)]
    assert all(a != b for a, b in itertools.combinations([*orders, list(range(100))], 2))
