"""Views: random crops and flips, computed from a seed, and applied to images and their maps alike.

Padded crops move whole pixels, without interpolation. Resized crops enlarge a part of the image to the image's size, as torchvision's
RandomResizedCrop does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from igkd.base.choices import Crop
from igkd.base.random_draws import uniform
from igkd.config.optimisation import FewCrops

LARGE = 64
"""Images with a side of more pixels than this are large: `--crop auto` is resized for them, and they have no `--views all`."""
AREA = (0.35, 1.0)
"""Least and largest share of an image's area that a resized crop shows (docs/decisions.md says why not torchvision's 0.08)."""
ASPECT = (3 / 4, 4 / 3)
"""Least and largest ratio of a resized crop's width to its height, before it is scaled; torchvision's."""
ATTEMPTS = 10
"""Boxes that are drawn for a resized crop before the largest central one is taken, as by torchvision."""


@dataclass(frozen=True)
class View:
    """Crop and flip of each of B images in one epoch; every tensor has shape (B,)."""

    dy: Tensor
    """int64: the row of the image at the view's upper edge; for a padded crop in [-padding, padding]."""
    dx: Tensor
    """int64: the column of the image at the view's left edge, before the flip."""
    flip: Tensor
    """bool: mirrored left to right, after the move."""
    height: Tensor | None = None
    """int64: rows of the image that a resized crop shows; None for padded crops, which show as many as the image has."""
    width: Tensor | None = None
    """int64: columns of the image that a resized crop shows; None for padded crops."""

    @property
    def resized(self) -> bool:
        """Whether these are resized crops."""
        return self.height is not None

    def each(self, change: Callable[[Tensor], Tensor]) -> "View":
        """The views with a function applied to every tensor."""
        values = (getattr(self, field.name) for field in fields(self))
        return View(*(None if value is None else change(value) for value in values))  # type: ignore[arg-type]

    def select(self, index: Tensor) -> "View":
        """The views at the given positions."""
        return self.each(lambda values: values[index])

    def to(self, device: torch.device) -> "View":
        """The views with their tensors on a device."""
        return self.each(lambda values: values.to(device, non_blocking=True))

    def affine(self, image_shape: tuple[int, int]) -> Tensor:
        """The views as affine matrices, float32 (B, 2, 3), for `torch.nn.functional.affine_grid`.

        They map a position in the view to its position in the image; both are (x, y) in [-1, 1] from edge to edge.

        Args:
            image_shape: (H, W) of the images in pixels.
        """
        rows, columns = image_shape
        height = torch.full_like(self.dy, rows) if self.height is None else self.height
        width = torch.full_like(self.dx, columns) if self.width is None else self.width
        theta = torch.zeros(len(self.dy), 2, 3, device=self.dy.device)
        theta[:, 0, 0], theta[:, 1, 1] = torch.where(self.flip, -width, width) / columns, height / rows
        theta[:, 0, 2] = (2 * self.dx + width - columns) / columns
        theta[:, 1, 2] = (2 * self.dy + height - rows) / rows
        return theta


def are_resized(crop: Crop, shape: tuple[int, int]) -> bool:
    """Whether `--crop` stands for resized crops of images of this (H, W)."""
    return crop == "resized" or (crop == "auto" and max(shape) > LARGE)


def draw_view(seed: int, epoch: int, ids: NDArray[np.int64], padding: int) -> View:
    """A random crop of the image padded with `padding` zeros, and a flip with probability 1/2: a function of (seed, epoch, id)."""
    return _padded(lambda purpose: uniform(seed, f"epoch {epoch} {purpose}", ids), padding)


def draw_resized_view(seed: int, epoch: int, ids: NDArray[np.int64], shape: tuple[int, int]) -> View:
    """A random resized crop of the image, and a flip with probability 1/2: a function of (seed, epoch, id) and the images' (H, W)."""
    return _resized(lambda purpose: uniform(seed, f"epoch {epoch} {purpose}", ids), shape)


def every_crop(padding: int) -> View:
    """All (2p + 1)^2 * 2 crops and flips for padding p, in the order of the axes of `Samples.views`: dy, dx, flip."""
    moves = torch.arange(-padding, padding + 1)
    dy, dx, flip = torch.meshgrid(moves, moves, torch.arange(2), indexing="ij")
    return View(dy.flatten(), dx.flatten(), flip.flatten() == 1)


def few_crops(crops: FewCrops, ids: NDArray[np.int64], padding: int, shape: tuple[int, int]) -> View:
    """The K crops of each image whose logits a store holds: fields of shape (B, K), a function of (crops.seed, id) and, if they are resized
    crops, of the images' (H, W)."""
    keys = ids[:, None] * crops.count + np.arange(crops.count)

    def draw(purpose: str) -> NDArray[np.float64]:
        return uniform(crops.seed, f"stored {purpose}", keys)

    return _resized(draw, shape) if crops.resized else _padded(draw, padding)


Draw = Callable[[str], NDArray[np.float64]]
"""Gives uniform numbers in [0, 1), one for each view, for a purpose such as "dy"."""


def _padded(draw: Draw, padding: int) -> View:
    """Padded crops from uniform numbers."""

    def moved(u: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.floor(u * (2 * padding + 1)).astype(np.int64) - padding)

    return View(moved(draw("dy")), moved(draw("dx")), torch.from_numpy(draw("flip") < 0.5))


def _resized(draw: Draw, shape: tuple[int, int]) -> View:
    """Resized crops from uniform numbers, by the law of torchvision's RandomResizedCrop.get_params.

    The area is uniform in `AREA`, the logarithm of the aspect ratio in that of `ASPECT`, the place uniform among those inside the image. A
    box that does not fit into the image is drawn again, up to `ATTEMPTS` times; after that it is the largest central box of an allowed
    aspect ratio.
    """
    (rows, columns), place = shape, draw("dy")
    ratio = min(max(columns / rows, ASPECT[0]), ASPECT[1])
    height = np.full(place.shape, min(rows, round(columns / ratio)), np.int64)
    width = np.full(place.shape, min(columns, round(rows * ratio)), np.int64)
    found = np.zeros(place.shape, np.bool_)
    low, high = (math.log(aspect) for aspect in ASPECT)
    for attempt in range(ATTEMPTS):
        if found.all():
            break
        area = rows * columns * (AREA[0] + (AREA[1] - AREA[0]) * draw(f"area {attempt}"))
        aspect = np.exp(low + (high - low) * draw(f"aspect {attempt}"))
        tall, wide = np.rint(np.sqrt(area / aspect)).astype(np.int64), np.rint(np.sqrt(area * aspect)).astype(np.int64)
        fits = ~found & (tall >= 1) & (tall <= rows) & (wide >= 1) & (wide <= columns)
        height, width, found = np.where(fits, tall, height), np.where(fits, wide, width), found | fits
    top = np.where(found, np.floor(place * (rows - height + 1)), (rows - height) // 2)
    left = np.where(found, np.floor(draw("dx") * (columns - width + 1)), (columns - width) // 2)
    boxes = [torch.from_numpy(values.astype(np.int64)) for values in (top, left, height, width)]
    return View(boxes[0], boxes[1], torch.from_numpy(draw("flip") < 0.5), boxes[2], boxes[3])


def move(values: Tensor, view: View, image_shape: tuple[int, int] | None = None) -> Tensor:
    """Apply views to images, or to what is known of their pixels.

    Padded crops, and resized crops that show the whole image, are applied exactly (`crop_flip`); others by one affine transformation with
    bilinear interpolation, whatever the resolution of the values. At the image's border its outermost values are repeated.

    Args:
        values: images (B, C, h, w) or maps (B, h, w), any dtype; whole numbers are rounded to whole numbers.
        image_shape: (H, W) of the images in pixels; None if the values have that size. Needed where they are coarser.

    Returns:
        same shape and dtype.
    """
    if not view.resized:
        return crop_flip(values, view)
    if values.dim() == 3:
        return move(values.unsqueeze(1), view, image_shape).squeeze(1)
    height, width = values.shape[2:]
    rows, columns = image_shape or (height, width)
    view = view.to(values.device)
    real = values if values.is_floating_point() else values.float()
    theta = view.affine((rows, columns)).to(real.dtype)
    # Element by element, not by a product of matrices: so the rounding of an image's grid does not depend on its batch.
    x = theta[:, 0, 0, None] * _centres(width, theta) + theta[:, 0, 2, None]
    y = theta[:, 1, 1, None] * _centres(height, theta) + theta[:, 1, 2, None]
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    moved = F.grid_sample(real, grid, padding_mode="border", align_corners=False)
    moved = (moved if values.is_floating_point() else moved.round()).to(values.dtype)
    assert view.height is not None and view.width is not None
    whole = (view.height.eq(rows) & view.width.eq(columns)).nonzero().squeeze(1)
    if len(whole):
        moved[whole] = crop_flip(values[whole], view.select(whole))
    return moved


def _centres(count: int, like: Tensor) -> Tensor:
    """The centres of `count` pixels side by side, in [-1, 1] from edge to edge."""
    return (2 * torch.arange(count, dtype=like.dtype, device=like.device) + 1) / count - 1


def crop_flip(images: Tensor, view: View) -> Tensor:
    """Apply a view by indexing, without interpolation.

    Args:
        images: (B, C, H, W) or maps (B, H, W), any dtype.

    Returns:
        same shape and dtype; pixels from outside the image are 0, as with torchvision's RandomCrop(padding).
    """
    if images.dim() == 3:
        return crop_flip(images.unsqueeze(1), view).squeeze(1)
    _, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) + view.dy.to(images.device)[:, None]
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    columns = torch.where(view.flip.to(images.device)[:, None], width - 1 - columns, columns) + view.dx.to(images.device)[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    picked = images[batch, :, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]  # (B, H, W, C)
    return (picked * inside[..., None]).permute(0, 3, 1, 2)


def warp(images: Tensor, theta: Tensor) -> Tensor:
    """Apply affine transformations, bilinearly; `crop_flip` is the exact path for whole pixels.

    Args:
        images: float (B, C, H, W) or maps (B, H, W), of any resolution.
        theta: float (B, 2, 3), as `View.affine` gives.

    Returns:
        same shape and dtype; what moves in from outside is 0.
    """
    if images.dim() == 3:
        return warp(images.unsqueeze(1), theta).squeeze(1)
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
