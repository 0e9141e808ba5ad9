import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd.images import drawn_shapes
from tests.helpers.paths import ROOT

PROGRAM = """
import hashlib
from igkd.images import drawn_shapes
digest = hashlib.sha256()
for index in range(20):
    for array in drawn_shapes.draw(3, "train", index):
        digest.update(array.tobytes())
print(digest.hexdigest())
"""

pictures = st.tuples(st.integers(0, 2**40), st.sampled_from(["train", "test", ""]), st.integers(0, 10**6))


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """600 pictures (N, 32, 32, 3) in 0 to 255 as float, their masks (N, 32, 32) and labels (N,)."""
    pairs = [drawn_shapes.draw(0, "train", index) for index in range(600)]
    labels = np.array([drawn_shapes.label(index) for index in range(600)])
    return np.stack([p[0] for p in pairs]).astype(float), np.stack([p[1] for p in pairs]), labels


def in_a_fresh_process(hash_seed: str) -> str:
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True).stdout


def test_ten_distinct_classes_in_turn() -> None:
    assert len(set(drawn_shapes.CLASSES)) == len(drawn_shapes.CLASSES) == 10
    assert np.bincount([drawn_shapes.label(index) for index in range(250)]).tolist() == [25] * 10


def test_the_same_picture_in_every_process() -> None:
    assert in_a_fresh_process("1") == in_a_fresh_process("2")


@settings(max_examples=30, deadline=None)
@given(pictures, st.integers(12, 70))
def test_shape_type_and_determinism_at_any_size(picture: tuple[int, str, int], size: int) -> None:
    image, mask = drawn_shapes.draw(*picture, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert mask.shape == (size, size) and mask.dtype == np.bool_
    again = drawn_shapes.draw(*picture, size)
    assert np.array_equal(image, again[0]) and np.array_equal(mask, again[1])


@settings(max_examples=30, deadline=None)
@given(pictures, pictures)
def test_another_seed_split_or_index_is_another_picture(one: tuple[int, str, int], other: tuple[int, str, int]) -> None:
    same = np.array_equal(drawn_shapes.draw(*one)[0], drawn_shapes.draw(*other)[0])
    assert same == (one == other)


def test_no_two_pictures_alike_within_or_across_splits() -> None:
    seen = {drawn_shapes.draw(seed, split, index)[0].tobytes() for seed in (0, 1) for split in ("train", "test") for index in range(60)}
    assert len(seen) == 240


@settings(max_examples=60, deadline=None)
@given(pictures)
def test_the_object_lies_inside_the_frame_and_has_a_plausible_size(picture: tuple[int, str, int]) -> None:
    mask = drawn_shapes.draw(*picture)[1]
    assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    assert 0.015 < mask.mean() < 0.5
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    assert 0.25 * 32 <= longest <= 0.8 * 32


@settings(max_examples=20, deadline=None)
@given(pictures)
def test_another_size_shows_the_same_scene(picture: tuple[int, str, int]) -> None:
    image, mask = drawn_shapes.draw(*picture, 32)
    large_image, large_mask = drawn_shapes.draw(*picture, 64)
    halved = large_mask.reshape(32, 2, 32, 2).mean(axis=(1, 3)) > 0.5
    assert (halved ^ mask).mean() < 0.06
    assert np.abs(large_image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)) - image).mean() < 16


@pytest.mark.parametrize("turn", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("mirror", [1, -1])
def test_no_class_turns_into_another_by_mirroring_or_turning(turn: float, mirror: int) -> None:
    """Rotation-invariant description: sorted distances from the centroid of the filled outline."""

    def profile(points: np.ndarray) -> np.ndarray:
        points = points - points.min(axis=0)
        cover = drawn_shapes._cover(0.1 + 0.5 * points / np.ptp(points, axis=0).max(), 128) > 0.5
        where = np.argwhere(cover).astype(float)
        distance = np.linalg.norm(where - where.mean(axis=0), axis=1)
        quantiles: np.ndarray = np.quantile(distance, np.linspace(0, 1, 21)) / np.sqrt(len(where))
        return quantiles

    plain = {name: profile(outline()) for name, outline in drawn_shapes.OUTLINES.items()}
    for name, outline in drawn_shapes.OUTLINES.items():
        changed = profile(drawn_shapes._rotated(outline() * (mirror, 1), turn))
        assert min(plain, key=lambda other: float(np.abs(plain[other] - changed).mean())) == name


def test_colour_says_nothing_about_the_class(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Least squares on the mean colour of a picture and its square: no better than guessing."""
    images, _, labels = drawn
    mean = images.mean(axis=(1, 2)) / 255
    features = np.concatenate([mean, mean**2, np.ones((len(mean), 1))], axis=1)
    half = len(labels) // 2
    weights = np.linalg.lstsq(features[:half], np.eye(10)[labels[:half]], rcond=None)[0]
    accuracy = ((features[half:] @ weights).argmax(axis=1) == labels[half:]).mean()
    assert accuracy < 0.17  # chance is 0.1; four standard deviations at 300 pictures


def test_object_and_ground_colours_say_nothing_about_the_class(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    images, masks, labels = drawn
    features = np.array(
        [np.concatenate([i[m].mean(axis=0), i[~m].mean(axis=0), [255.0]]) / 255 for i, m in zip(images, masks, strict=True)]
    )
    half = len(labels) // 2
    weights = np.linalg.lstsq(features[:half], np.eye(10)[labels[:half]], rcond=None)[0]
    assert ((features[half:] @ weights).argmax(axis=1) == labels[half:]).mean() < 0.17


def test_colour_steps_at_the_outline_of_the_mask(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Neighbouring pixels differ far more across the mask's edge than within object or ground, in nearly every picture."""
    images, masks, _ = drawn
    step = np.abs(np.diff(images, axis=2)).max(axis=3)  # (N, 32, 31)
    edge = masks[:, :, 1:] ^ masks[:, :, :-1]
    ratio = np.array([s[e].mean() / s[~e].mean() for s, e in zip(step, edge, strict=True)])
    shifted = np.array([s[e].mean() / s[~e].mean() for s, e in zip(step, np.roll(edge, 300, axis=0), strict=True)])
    assert np.median(ratio) > 2
    assert (ratio > 1.1).mean() > 0.95
    assert np.median(shifted) < 1.5  # another picture's mask marks nothing here


def test_only_the_object_tells_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pictures drawn with another outline change inside the two masks (and their rims and thin tips), and nowhere else."""
    for index in range(30):
        image, mask = drawn_shapes.draw(5, "test", index)
        with monkeypatch.context() as patch:
            patch.setitem(
                drawn_shapes.OUTLINES,
                drawn_shapes.CLASSES[drawn_shapes.label(index)],
                drawn_shapes.OUTLINES[drawn_shapes.CLASSES[drawn_shapes.label(index + 1)]],
            )
            other_image, other_mask = drawn_shapes.draw(5, "test", index)
        changed = (image != other_image).any(axis=2)
        either = mask | other_mask
        grown = np.zeros_like(either)
        for dy in range(-3, 4):
            for dx in range(-3, 4):
                grown |= np.roll(either, (dy, dx), axis=(0, 1))
        assert not changed[~grown].any()
        assert changed[mask ^ other_mask].mean() > 0.5
