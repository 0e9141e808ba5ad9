import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from igkd.attribution.attention import moved_attention, normalise_map
from igkd.attribution.overlay import content_of, minmax, overlay, sharpen
from igkd.base.choices import Content
from igkd.config.optimisation import Objective, Optimisation
from igkd.images.samples import Samples
from igkd.images.views import View, crop_flip, draw_view, warp
from igkd.training.augment import augment, cutout, deranged, draw, draw_overlay, overlay_probability, pixel_order

IDS = np.arange(20_000)


def view_of(moves: list[tuple[int, int, bool]]) -> View:
    dy, dx, flip = zip(*moves, strict=True)
    return View(torch.tensor(dy), torch.tensor(dx), torch.tensor(flip))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def overlay_by_hand(pixels: np.ndarray, maps: np.ndarray, exponents: list[float]) -> np.ndarray:
    """The formula in double precision, image by image."""
    result = np.empty(pixels.shape)
    for i, s in enumerate(exponents):
        powered = maps[i].astype(np.float64) ** s
        spread = powered.max() - powered.min()
        mask = (powered - powered.min()) / spread if spread > 0 else np.zeros_like(powered)
        for channel in range(3):
            result[i, channel] = 0.5 * pixels[i, channel] + 0.5 * mask
    return result


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (6, 3)])
def test_same_as_torchvision_at_every_offset(shape: tuple[int, int]) -> None:
    padding = 3
    moves = list(itertools.product(range(-padding, padding + 1), range(-padding, padding + 1), [False, True]))
    images = noise(len(moves), 3, *shape)
    moved = crop_flip(images, view_of(moves))
    for image, result, (dy, dx, flip) in zip(images, moved, moves, strict=True):
        expected = tv.crop(tv.pad(image, [padding]), padding + dy, padding + dx, *shape)
        assert torch.equal(result, tv.hflip(expected) if flip else expected)


moves = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(moves, st.integers(1, 9), st.integers(1, 9), st.sampled_from([torch.uint8, torch.float32, torch.float64]))
def test_image_and_map_move_together(moves: list[tuple[int, int, bool]], height: int, width: int, dtype: torch.dtype) -> None:
    maps = (noise(len(moves), height, width) * 255).to(dtype)
    images = torch.stack([255 - maps, maps, maps // 2], dim=1)
    view = view_of(moves)
    moved = crop_flip(images, view)
    assert moved.dtype == dtype and moved.shape == images.shape
    assert torch.equal(moved[:, 1], crop_flip(maps, view))
    # Whatever a batch holds besides, an image moves in the same way.
    alone = [crop_flip(images[i : i + 1], view_of(moves[i : i + 1])) for i in range(len(moves))]
    assert torch.equal(moved, torch.cat(alone))


def test_standing_still_changes_nothing() -> None:
    images = noise(2, 3, 4, 6)
    assert torch.equal(crop_flip(images, view_of([(0, 0, False)] * 2)), images)


def test_moved_out_of_sight_is_black() -> None:
    assert not crop_flip(noise(2, 3, 4, 6) + 1, view_of([(4, 0, False), (0, -6, True)])).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.integers(2, 8), st.integers(-25, 6), st.integers(0, 999), st.data())
def test_overlay_is_the_formula(batch: int, height: int, width: int, scale: int, seed: int, data: st.DataObject) -> None:
    pixels, maps = noise(batch, 3, height, width, seed=seed), noise(batch, height, width, seed=seed + 1) * 10.0**scale
    exponents = data.draw(st.lists(st.floats(1, 2, width=32), min_size=batch, max_size=batch))
    result = overlay(pixels, sharpen(maps, torch.tensor(exponents)))
    assert result.min() >= 0 and result.max() <= 1
    np.testing.assert_allclose(result, overlay_by_hand(pixels.numpy(), maps.numpy(), exponents), atol=2e-6)


@pytest.mark.parametrize("level", [0.0, 1e-42, 1e-30, 0.3, 1e30])
def test_a_constant_map_only_halves(level: float) -> None:
    pixels = noise(2, 3, 5, 4)
    assert torch.equal(overlay(pixels, sharpen(torch.full((2, 5, 4), level), torch.tensor([1.0, 1.7]))), 0.5 * pixels)


@pytest.mark.parametrize("factor", [1e-36, 1e-30, 1e-6, 1e6, 1e30])
def test_the_scale_of_a_map_does_not_count(factor: float) -> None:
    maps, exponents = noise(3, 5, 4, seed=1), torch.tensor([1.0, 1.4, 2.0])
    torch.testing.assert_close(sharpen(maps * factor, exponents), sharpen(maps, exponents), rtol=0, atol=2e-5)


def test_the_largest_map_value_is_white_and_the_least_black() -> None:
    maps = noise(4, 6, 5)
    scaled = minmax(maps)
    for one, result in zip(maps, scaled, strict=True):
        assert result.flatten()[one.argmax()] == 1 and result.flatten()[one.argmin()] == 0
    assert torch.equal(scaled.flatten(1).argsort(dim=1), maps.flatten(1).argsort(dim=1))


def test_a_higher_exponent_leaves_less_of_the_faint() -> None:
    pixels, maps = torch.zeros(1, 3, 6, 5), noise(1, 6, 5)
    levels = [overlay(pixels, sharpen(maps, torch.tensor([s]))).mean().item() for s in (1.0, 1.5, 2.0)]
    assert levels[0] > levels[1] > levels[2]


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_views_are_uniform_and_their_parts_independent(padding: int) -> None:
    view = draw_view(0, 1, IDS, padding)
    places = 2 * padding + 1
    assert view.dy.dtype == view.dx.dtype == torch.int64 and view.flip.dtype == torch.bool
    dy, dx = (np.bincount((offset + padding).numpy(), minlength=places) for offset in (view.dy, view.dx))
    assert len(dy) == len(dx) == places
    joint = np.bincount((((view.dy + padding) * places + view.dx + padding) * 2 + view.flip).numpy(), minlength=places * places * 2)
    assert min(stats.chisquare(counts).pvalue for counts in (dy, dx, joint)) > 1e-3 or padding == 0
    assert stats.binomtest(int(view.flip.sum()), len(IDS), 0.5).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.7, 1.0])
def test_overlays_are_as_frequent_as_asked_and_exponents_log_uniform(probability: float) -> None:
    chosen, exponent = draw_overlay(0, 1, IDS, probability, (1.0, 2.0))
    assert chosen.shape == exponent.shape == (len(IDS),) and exponent.dtype == torch.float32
    if probability in (0.0, 1.0):
        assert chosen.all() if probability else not chosen.any()
    else:
        assert stats.binomtest(int(chosen.sum()), len(IDS), probability).pvalue > 1e-3
    for part in (exponent, exponent[chosen]) if chosen.any() else (exponent,):
        assert stats.kstest(np.log(part.double().numpy()) / np.log(2), "uniform").pvalue > 1e-3


def test_other_exponents() -> None:
    exponent = draw_overlay(0, 1, IDS, 0.1, (0.25, 4.0))[1]
    assert 0.25 <= exponent.min() < 0.251 and 3.99 < exponent.max() <= 4
    assert abs((exponent < 1).float().mean() - 0.5) < 0.02
    assert (draw_overlay(0, 1, IDS, 0.1, (1.5, 1.5))[1] == 1.5).all()


def draws(seed: int, epoch: int, ids: np.ndarray) -> tuple[Tensor, ...]:
    view = draw_view(seed, epoch, ids, 4)
    return (view.dy, view.dx, view.flip, *draw_overlay(seed, epoch, ids, 0.5, (1.0, 2.0)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=40, unique=True), st.integers(0, 99), st.integers(1, 99), st.data())
def test_draws_do_not_depend_on_the_batch(ids: list[int], seed: int, epoch: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=50))
    whole, part = draws(seed, epoch, np.array(ids)), draws(seed, epoch, np.array(ids)[rows])
    assert all(torch.equal(w[rows], p) for w, p in zip(whole, part, strict=True))


def test_draws_depend_on_seed_and_epoch_and_differ_from_each_other() -> None:
    here = draws(0, 1, IDS)
    for there in (draws(0, 2, IDS), draws(1, 1, IDS)):
        # Two independent draws agree in one of 9 offsets, one of 2 flips, and in no exponent.
        agree = [(a == b).double().mean().item() for a, b in zip(here, there, strict=True)]
        assert agree == pytest.approx([1 / 9, 1 / 9, 1 / 2, 1 / 2, 0], abs=0.02)
    assert np.abs(np.corrcoef(torch.stack([d.double() for d in here])) - np.eye(5)).max() < 0.03


# (h, w) of the attention, (H, W) of the image: strides 4 x 4, 4 x 2, 8 x 4.
@pytest.mark.parametrize(("cells", "image"), [((8, 8), (32, 32)), ((8, 8), (32, 16)), ((3, 5), (24, 20))])
def test_attention_moves_by_whole_cells(cells: tuple[int, int], image: tuple[int, int]) -> None:
    steps = list(itertools.product([-2, -1, 0, 1, 2], [-2, -1, 0, 1, 2], [False, True]))
    maps = normalise_map(noise(len(steps), *cells))
    stride = (image[0] // cells[0], image[1] // cells[1])
    moved = moved_attention(maps, view_of([(y * stride[0], x * stride[1], flip) for y, x, flip in steps]), image)
    expected = normalise_map(crop_flip(maps, view_of(steps)))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.ones(len(steps)))


def test_attention_moves_by_half_a_cell_to_the_mean_of_two() -> None:
    maps = noise(2, 8, 8)
    moved = moved_attention(maps, view_of([(2, 0, False), (0, 2, False)]), (32, 32))
    down, right = (maps[0, :-1] + maps[0, 1:]) / 2, (maps[1, :, :-1] + maps[1, :, 1:]) / 2
    # The last row or column mixes with what is outside; proportions of the others stay.
    torch.testing.assert_close(moved[0, :-1] / moved[0, 0, 0], down / down[0, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved[1, :, :-1] / moved[1, 0, 0], right / right[0, 0], rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.booleans()), min_size=1, max_size=4),
    st.integers(3, 12),
    st.integers(3, 12),
)
def test_a_view_as_an_affine_transformation_is_the_exact_one(moves: list[tuple[int, int, bool]], height: int, width: int) -> None:
    images, view = noise(len(moves), 3, height, width), view_of(moves)
    torch.testing.assert_close(warp(images, view.affine((height, width))), crop_flip(images, view), rtol=0, atol=1e-5)


def test_mirrored_and_unmoved_attention() -> None:
    maps = normalise_map(noise(2, 6, 5))
    moved = moved_attention(maps, view_of([(0, 0, True), (0, 0, False)]), (24, 20))
    torch.testing.assert_close(moved, torch.stack([maps[0].flip(1), maps[1]]), rtol=0, atol=1e-6)


def test_attention_moved_out_of_sight_is_zero() -> None:
    moved = moved_attention(noise(1, 4, 4), view_of([(16, 0, False)]), (16, 16))
    assert not moved.any()


# What is laid over


def layers(content: Content, maps: Tensor, exponent: Tensor) -> Tensor:
    masks = (maps > maps.mean()).to(torch.uint8)
    order = pixel_order(3, 2, np.arange(len(maps)) + 7, maps[0].numel())
    return content_of(content, sharpen(maps, exponent), masks, order)


def test_a_control_keeps_of_a_map_what_it_says_and_no_more() -> None:
    maps, exponent = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 1.2, 1.5, 1.8, 2.0])
    own = layers("own", maps, exponent)
    assert torch.equal(own, sharpen(maps, exponent)) and torch.equal(layers("other", maps, exponent), own)
    noise = layers("noise", maps, exponent)
    assert torch.equal(noise.flatten(1).sort(dim=1).values, own.flatten(1).sort(dim=1).values)  # the histogram
    correlations = [float(np.corrcoef(a.flatten(), b.flatten())[0, 1]) for a, b in zip(noise, own, strict=True)]
    assert max(map(abs, correlations)) < 0.5  # not the places
    grey = layers("brightness", maps, exponent)
    torch.testing.assert_close(grey.mean(dim=(1, 2)), own.mean(dim=(1, 2)))
    assert (grey.amax(dim=(1, 2)) == grey.amin(dim=(1, 2))).all()
    assert not layers("black", maps, exponent).any()
    assert torch.equal(layers("mask", maps, exponent), (maps > maps.mean()).float())


def test_noise_is_fixed_by_seed_epoch_and_id() -> None:
    ids = np.array([5, 900, 6])
    one = pixel_order(1, 1, ids, 30)
    assert torch.equal(one[[1]], pixel_order(1, 1, ids[[1]], 30))
    assert all((row.sort().values == torch.arange(30)).all() for row in one)
    assert not torch.equal(one, pixel_order(1, 2, ids, 30)) and not torch.equal(one, pixel_order(2, 1, ids, 30))


@pytest.mark.parametrize("blend", [0.0, 0.3, 1.0])
def test_the_blend_is_the_weight_of_the_layer(blend: float) -> None:
    pixels, layer = torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4)
    expected = (1 - blend) * pixels.double() + blend * layer.double()[:, None]
    torch.testing.assert_close(overlay(pixels, layer, blend).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "rising", "falling"])
def test_a_schedule_of_the_overlay_keeps_its_mean(schedule: Any) -> None:
    objective = Objective(overlay=0.3, overlay_schedule=schedule)
    values = [overlay_probability(objective, (epoch + 0.5) / 40) for epoch in range(40)]
    assert np.mean(values) == pytest.approx(0.3) and min(values) >= 0 and max(values) <= 1
    assert {"constant": values[0] == values[-1], "rising": values[0] < values[-1], "falling": values[0] > values[-1]}[schedule]


def test_cutout_hides_a_square_around_its_centre() -> None:
    pixels = torch.ones(3, 3, 8, 8)
    hidden = cutout(pixels, torch.tensor([4, 0, 7]), torch.tensor([4, 0, 3]), 4)
    assert (hidden[0, 0] == 0.5).nonzero().tolist() == [[y, x] for y in range(2, 6) for x in range(2, 6)]
    assert (hidden[1, 0] == 0.5).nonzero().tolist() == [[y, x] for y in range(2) for x in range(2)]
    assert (hidden[2, 0] == 0.5).nonzero().tolist() == [[y, x] for y in range(5, 8) for x in range(1, 5)]
    assert torch.equal(hidden[:, 0], hidden[:, 2])


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.integers(0, 9))
def test_nobody_is_their_own_partner(count: int, seed: int) -> None:
    partner = deranged(count, seed, "partner")
    assert sorted(partner.tolist()) == list(range(count)) and (partner != np.arange(count)).all()


def test_the_teacher_sees_the_crop_without_overlay_and_cutout() -> None:
    how = Optimisation(optimizer="sgd", schedule="constant", learning_rate=1, weight_decay=0, epochs=1, batch_size=4, padding=2, cutout=3)
    pixels = torch.randint(256, (4, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples, objective = (
        Samples(np.arange(4), pixels, torch.zeros(4, dtype=torch.int64), {"ig": torch.rand(4, 9, 9)}),
        Objective(overlay=1.0),
    )
    draws = draw(0, 1, samples.ids, samples.shape, how, objective)
    seen, clean = augment(samples, draws, how, objective, 0, 1)
    assert torch.equal(clean, crop_flip(pixels, draws.view).float() / 255)
    assert samples.ig is not None
    layer = sharpen(crop_flip(samples.ig, draws.view), draws.exponent)
    torch.testing.assert_close(seen, cutout(overlay(clean, layer), draws.hidden_y, draws.hidden_x, 3))
    uncropped, _ = augment(samples, draws, how, Objective(overlay=1.0, uncropped_maps=True), 0, 1)
    torch.testing.assert_close(uncropped, cutout(overlay(clean, sharpen(samples.ig, draws.exponent)), draws.hidden_y, draws.hidden_x, 3))
