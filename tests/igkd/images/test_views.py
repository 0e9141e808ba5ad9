"""Resized crops: how they are drawn, and that image, map, mask and attention move by one affine transformation."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from igkd.attribution.attention import moved_attention
from igkd.config.optimisation import FewCrops
from igkd.images.views import AREA, ASPECT, View, are_resized, crop_flip, draw_resized_view, draw_view, few_crops, move

Box = tuple[int, int, int, int, bool]
"""Top, left, height, width, flip."""


def view_of(boxes: list[Box]) -> View:
    top, left, height, width, flip = (torch.tensor(values) for values in zip(*boxes, strict=True))
    return View(top, left, flip, height, width)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def pictures(draw: st.DrawFn) -> tuple[tuple[int, int], Box]:
    """An image's (H, W), and a box of at least a third of each side inside it."""
    rows, columns = draw(st.integers(9, 40)), draw(st.integers(9, 40))
    height, width = draw(st.integers(-(-rows // 3), rows)), draw(st.integers(-(-columns // 3), columns))
    return (rows, columns), (draw(st.integers(0, rows - height)), draw(st.integers(0, columns - width)), height, width, draw(st.booleans()))


# How they are drawn


@pytest.mark.parametrize("shape", [(224, 224), (96, 128), (70, 300), (300, 70), (65, 65)])
def test_boxes_have_the_law_of_torchvision(shape: tuple[int, int]) -> None:
    """Area, aspect ratio, place and fallback, by two-sample tests against RandomResizedCrop itself."""
    torch.manual_seed(0)
    picture = torch.empty(3, *shape)
    theirs = np.array([RandomResizedCrop.get_params(picture, list(AREA), list(ASPECT)) for _ in range(4000)])
    view = draw_resized_view(0, 1, np.arange(4000), shape)
    assert view.height is not None and view.width is not None
    ours = torch.stack([view.dy, view.dx, view.height, view.width], dim=1).numpy()
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= shape[0]).all() and (ours[:, 1] + ours[:, 3] <= shape[1]).all()

    def figures(boxes: np.ndarray) -> list[np.ndarray]:
        top, left, height, width = boxes.T
        return [height * width, width / height, top + height / 2, left + width / 2]

    for our, their in zip(figures(ours), figures(theirs), strict=True):
        assert stats.ks_2samp(our, their).pvalue > 1e-3
    assert stats.binomtest(int(view.flip.sum()), 4000, 0.5).pvalue > 1e-3


def test_an_image_into_which_no_box_fits_gets_the_largest_central_one() -> None:
    view = draw_resized_view(0, 1, np.arange(50), (20, 300))
    wanted = RandomResizedCrop.get_params(torch.empty(3, 20, 300), list(AREA), list(ASPECT))
    assert wanted[3] == round(20 * ASPECT[1])
    assert view.height is not None and view.width is not None
    assert {tuple(row) for row in torch.stack([view.dy, view.dx, view.height, view.width], 1).tolist()} == {tuple(wanted)}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30, unique=True), st.integers(0, 99), st.integers(1, 99), st.data())
def test_a_view_depends_on_seed_epoch_and_id_alone(ids: list[int], seed: int, epoch: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=40))
    shape = (100, 140)
    whole = draw_resized_view(seed, epoch, np.array(ids), shape).select(torch.tensor(rows))
    assert same(whole, draw_resized_view(seed, epoch, np.array(ids)[rows], shape))


def same(one: View, other: View) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("dy", "dx", "flip", "height", "width"))


def test_other_seeds_and_epochs_give_other_views() -> None:
    ids = np.arange(200)
    here = draw_resized_view(0, 1, ids, (100, 100))
    for there in (draw_resized_view(1, 1, ids, (100, 100)), draw_resized_view(0, 2, ids, (100, 100))):
        assert here.height is not None and there.height is not None
        assert (here.height == there.height).float().mean() < 0.1 and (here.flip == there.flip).float().mean() < 0.7


def test_stored_crops_are_the_same_for_all_runs_and_each_drawn_by_that_law() -> None:
    crops, ids, shape = FewCrops(count=5, seed=3, resized=True), np.arange(800), (224, 224)
    stored = few_crops(crops, ids, 4, shape)
    assert same(stored, few_crops(crops, ids[::-1].copy(), 0, shape).each(lambda values: values.flip(0)))
    assert stored.height is not None and stored.width is not None and stored.dy.shape == (800, 5)
    drawn = draw_resized_view(0, 1, np.arange(4000), shape)
    assert drawn.height is not None and drawn.width is not None
    areas = [(one.height * one.width).flatten().numpy() for one in (stored, drawn)]  # type: ignore[operator]
    assert stats.ks_2samp(*areas).pvalue > 1e-3


def test_stored_crops_are_for_ever_the_same() -> None:
    """Stores have the logits of these crops and not their places. Who changes how crops are drawn has to raise the version of the views."""
    resized = few_crops(FewCrops(count=3, seed=0, resized=True), np.array([0, 7]), 4, (224, 224))
    assert resized.height is not None and resized.width is not None
    boxes = torch.stack([resized.dy, resized.dx, resized.height, resized.width, resized.flip.long()], dim=-1)
    assert boxes.tolist() == [
        [[14, 0, 176, 220, 1], [40, 31, 150, 174, 1], [70, 10, 153, 144, 0]],
        [[13, 2, 206, 216, 1], [44, 30, 164, 180, 0], [21, 3, 189, 195, 0]],
    ]
    padded = few_crops(FewCrops(count=3, seed=0), np.array([0, 7]), 4, (32, 32))
    moves = torch.stack([padded.dy, padded.dx, padded.flip.long()], dim=-1)
    assert moves.tolist() == [[[-2, -3, 1], [0, 1, 1], [4, -3, 0]], [[2, -2, 1], [2, 2, 0], [1, -3, 0]]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 999))
def test_boxes_lie_in_images_of_any_shape(rows: int, columns: int, seed: int) -> None:
    view = draw_resized_view(seed, 1, np.arange(20), (rows, columns))
    assert view.height is not None and view.width is not None
    assert view.height.min() >= 1 and view.width.min() >= 1 and view.dy.min() >= 0 and view.dx.min() >= 0
    assert (view.dy + view.height).max() <= rows and (view.dx + view.width).max() <= columns


@pytest.mark.parametrize(
    ("crop", "shape", "expected"),
    [
        ("auto", (64, 64), False),
        ("auto", (64, 65), True),
        ("auto", (224, 224), True),
        ("padded", (224, 224), False),
        ("resized", (32, 32), True),
    ],
)
def test_what_auto_stands_for(crop: str, shape: tuple[int, int], expected: bool) -> None:
    assert are_resized(crop, shape) is expected  # type: ignore[arg-type]


# How they are applied


@settings(max_examples=60, deadline=None)
@given(st.lists(pictures(), min_size=1, max_size=1), st.integers(0, 99))
def test_a_resized_crop_is_that_of_torchvision(some: list[tuple[tuple[int, int], Box]], seed: int) -> None:
    """Except at the crop's rim, where torchvision repeats the crop's outermost pixels and this takes the image's own beyond it."""
    (shape, box), image = some[0], noise(1, 3, *some[0][0], seed=seed)
    top, left, height, width, flip = box
    found = move(image, view_of([box]))
    expected = tv.resized_crop(image, top, left, height, width, list(shape), antialias=False)
    rim = [math.ceil(shape[axis] / (2 * (height, width)[axis])) for axis in (0, 1)]
    inside = (..., slice(rim[0], shape[0] - rim[0]), slice(rim[1], shape[1] - rim[1]))
    torch.testing.assert_close(found[inside], (tv.hflip(expected) if flip else expected)[inside], rtol=0, atol=2e-5)
    by_formula = ndimage.map_coordinates(image[0, 0].double().numpy(), positions(shape, box), order=1, mode="nearest")
    np.testing.assert_allclose(found[0, 0].numpy(), by_formula, atol=2e-5)


def positions(shape: tuple[int, int], box: Box) -> np.ndarray:
    """Where in the image each pixel of the view comes from, (2, H, W): the formula in double precision."""
    top, left, height, width, flip = box
    y = top + (np.arange(shape[0]) + 0.5) * height / shape[0] - 0.5
    x = left + (np.arange(shape[1]) + 0.5) * width / shape[1] - 0.5
    return np.stack(np.meshgrid(y, x[::-1] if flip else x, indexing="ij"))


@settings(max_examples=60, deadline=None)
@given(pictures(), st.data())
def test_a_drawn_point_stays_on_its_pixel(picture: tuple[tuple[int, int], Box], data: st.DataObject) -> None:
    """Within half a pixel of where the formula has it, in image, map and mask; and the attention of its cell goes where the formula says.

    A point of the image's border, which is repeated beyond it, has no place of its own; the formula is compared there by the test above.
    """
    (rows, columns), box = picture
    top, left, height, width, flip = box
    y = data.draw(st.integers(max(1, top), min(rows - 2, top + height - 1)))
    x = data.draw(st.integers(max(1, left), min(columns - 2, left + width - 1)))
    point = torch.zeros(1, rows, columns)
    point[0, y, x] = 1
    view = view_of([box])
    image = move((255 * point).to(torch.uint8)[:, None].expand(-1, 3, -1, -1), view)
    place_y, place_x = (y + 0.5 - top) * rows / height - 0.5, (x + 0.5 - left) * columns / width - 0.5
    place_x = columns - 1 - place_x if flip else place_x
    for found in (image[0, 1], move(point, view)[0]):
        where = (found == found.max()).nonzero().double()
        assert (where[:, 0] - place_y).abs().min() <= 0.5 + 1e-4 and (where[:, 1] - place_x).abs().min() <= 0.5 + 1e-4
    mask = torch.zeros(1, rows, columns, dtype=torch.uint8)  # a single pixel may be less than half of any pixel of the view
    mask[0, y - 1 : y + 2, x - 1 : x + 2] = 1
    assert move(mask, view)[0, round(place_y), round(place_x)] == 1
    # Attention in cells of 3 x 3 pixels: the point's cell is where the cell that is brightest afterwards came from.
    cells = (max(3, rows // 3), max(3, columns // 3))
    cell = (int((y + 0.5) * cells[0] / rows), int((x + 0.5) * cells[1] / columns))
    attention = torch.zeros(1, *cells)
    attention[0, cell[0], cell[1]] = 1
    moved = moved_attention(attention, view, (rows, columns))
    back = positions(cells, (0, 0, *cells, flip))  # a view's cell, in cells of the view
    source_y = (back[0] + 0.5) * height / rows + top * cells[0] / rows - 0.5
    source_x = (back[1] + 0.5) * width / columns + left * cells[1] / columns - 0.5
    expected = ndimage.map_coordinates(attention[0].double().numpy(), [source_y, source_x], order=1, mode="nearest")
    length = np.linalg.norm(expected)
    np.testing.assert_allclose(moved[0].numpy(), expected / length if length > 1e-6 else expected, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(65, 66), (224, 224), (7, 9)])
def test_a_view_of_the_whole_image_changes_no_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    images = (noise(2, 3, *shape) * 255).to(dtype)
    moved = move(images, view_of([(0, 0, *shape, False), (0, 0, *shape, True)]))
    assert moved.dtype == dtype and torch.equal(moved, torch.stack([images[0], images[1].flip(-1)]))
    assert torch.equal(move(images[:, 0], view_of([(0, 0, *shape, False)] * 2)), images[:, 0])


def test_padded_crops_are_moved_exactly_as_before() -> None:
    images, view = noise(40, 3, 9, 11), draw_view(0, 1, np.arange(40), 3)
    assert torch.equal(move(images, view), crop_flip(images, view)) and not view.resized


def test_an_image_moves_in_the_same_way_in_any_batch() -> None:
    images, view = (noise(20, 3, 70, 90) * 255).to(torch.uint8), draw_resized_view(3, 2, np.arange(20), (70, 90))
    moved = move(images, view)
    for i in range(20):
        assert torch.equal(moved[i : i + 1], move(images[i : i + 1], view.select(torch.tensor([i]))))


def test_whole_numbers_are_rounded_and_a_mask_stays_a_mask() -> None:
    view = draw_resized_view(0, 1, np.arange(8), (70, 70))
    pixels = (noise(8, 3, 70, 70) * 255).to(torch.uint8)
    assert ((move(pixels, view).float() - move(pixels.float(), view)).abs() <= 0.5 + 1e-4).all()
    mask = (noise(8, 70, 70) > 0.5).to(torch.uint8)
    assert set(move(mask, view).unique().tolist()) == {0, 1}


def test_a_plain_attention_map_stays_plain() -> None:
    """Nothing comes in from outside a resized crop, so its border is as bright as the rest."""
    moved = moved_attention(torch.full((30, 7, 7), 1 / 7), draw_resized_view(0, 1, np.arange(30), (224, 224)), (224, 224))
    torch.testing.assert_close(moved, torch.full((30, 7, 7), 1 / 7))
