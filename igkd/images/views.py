"""Views: random crops and flips, computed from a seed, and applied to images and their maps by moving whole pixels."""

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from igkd.base.random_draws import uniform
from igkd.config.optimisation import FewCrops


@dataclass(frozen=True)
class View:
    """Crop and flip of each of B images in one epoch; every tensor has shape (B,)."""

    dy: Tensor
    """int64: rows by which the content moves up, in [-padding, padding]."""
    dx: Tensor
    """int64: columns by which the content moves left."""
    flip: Tensor
    """bool: mirrored left to right, after the move."""

    def select(self, index: Tensor) -> "View":
        """The views at the given positions."""
        return View(self.dy[index], self.dx[index], self.flip[index])

    def to(self, device: torch.device) -> "View":
        """The views with their tensors on a device."""
        return View(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def affine(self, image_shape: tuple[int, int]) -> Tensor:
        """The views as affine matrices, float32 (B, 2, 3), for `torch.nn.functional.affine_grid`.

        They map a position in the view to its position in the image; both are (x, y) in [-1, 1] from edge to edge.

        Args:
            image_shape: (H, W) of the images in pixels.
        """
        theta = torch.zeros(len(self.dy), 2, 3, device=self.dy.device)
        theta[:, 0, 0], theta[:, 1, 1] = torch.where(self.flip, -1.0, 1.0), 1.0
        theta[:, 0, 2] = self.dx * 2.0 / image_shape[1]
        theta[:, 1, 2] = self.dy * 2.0 / image_shape[0]
        return theta


def draw_view(seed: int, epoch: int, ids: NDArray[np.int64], padding: int) -> View:
    """A random crop of the image padded with `padding` zeros, and a flip with probability 1/2: a function of (seed, epoch, id)."""

    def draw(purpose: str) -> NDArray[np.float64]:
        return uniform(seed, f"epoch {epoch} {purpose}", ids)

    return _view(draw("dy"), draw("dx"), draw("flip"), padding)


def _view(dy: NDArray[np.float64], dx: NDArray[np.float64], flip: NDArray[np.float64], padding: int) -> View:
    """Turn uniform numbers in [0, 1) into a view."""

    def moved(u: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.floor(u * (2 * padding + 1)).astype(np.int64) - padding)

    return View(moved(dy), moved(dx), torch.from_numpy(flip < 0.5))


def every_crop(padding: int) -> View:
    """All (2p + 1)^2 * 2 crops and flips for padding p, in the order of the axes of `Samples.views`: dy, dx, flip."""
    moves = torch.arange(-padding, padding + 1)
    dy, dx, flip = torch.meshgrid(moves, moves, torch.arange(2), indexing="ij")
    return View(dy.flatten(), dx.flatten(), flip.flatten() == 1)


def few_crops(crops: FewCrops, ids: NDArray[np.int64], padding: int) -> View:
    """The K crops of each image whose logits a store holds: fields of shape (B, K), a function of (crops.seed, id) alone."""
    keys = ids[:, None] * crops.count + np.arange(crops.count)
    dy, dx, flip = (uniform(crops.seed, f"stored {purpose}", keys) for purpose in ("dy", "dx", "flip"))
    return _view(dy, dx, flip, padding)


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
