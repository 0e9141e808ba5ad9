"""Random crop, flip and overlay, as batched tensor operations that move image and map together."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from igkd.losses import normalise_map
from igkd.randomness import uniform


@dataclass(frozen=True)
class View:
    """How B images are looked at in one epoch; every tensor has shape (B,)."""

    dy: Tensor
    """int64: rows by which the content moves up, in [-padding, padding]."""
    dx: Tensor
    """int64: columns by which the content moves left."""
    flip: Tensor
    """bool: mirrored left to right, after the move."""


def draw_view(seed: int, epoch: int, ids: NDArray[np.int64], padding: int) -> View:
    """Random crop with `padding` pixels of zeros around, and a flip with probability 1/2: a function of (seed, epoch, id)."""

    def draw(purpose: str) -> NDArray[np.float64]:
        return uniform(seed, f"epoch {epoch} {purpose}", ids)

    def offset(purpose: str) -> Tensor:
        return torch.from_numpy(np.floor(draw(purpose) * (2 * padding + 1)).astype(np.int64) - padding)

    return View(offset("dy"), offset("dx"), torch.from_numpy(draw("flip") < 0.5))


def crop_flip(images: Tensor, view: View) -> Tensor:
    """Apply a view, exactly, by indexing.

    Args:
        images: (B, C, H, W) or maps (B, H, W), any dtype.

    Returns:
        same shape and dtype; what moves in from outside is 0, as with torchvision's RandomCrop(padding).
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


def move_attention(maps: Tensor, view: View, image_shape: tuple[int, int]) -> Tensor:
    """Apply a view of the image to its coarser attention maps, bilinearly, and bring them back to norm 1.

    Args:
        maps: float (B, h, w).
        image_shape: (H, W) that the view's offsets refer to.

    Returns:
        float (B, h, w).
    """
    sign = torch.where(view.flip, -1.0, 1.0)
    theta = torch.zeros(len(maps), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = sign, 1.0
    theta[:, 0, 2] = view.dx * 2.0 / image_shape[1]
    theta[:, 1, 2] = view.dy * 2.0 / image_shape[0]
    grid = F.affine_grid(theta.to(maps), [len(maps), 1, *maps.shape[1:]], align_corners=False)
    return normalise_map(F.grid_sample(maps.unsqueeze(1), grid, align_corners=False).squeeze(1))


def minmax(maps: Tensor) -> Tensor:
    """Scale each (H, W) map of (B, H, W) to [0, 1]; a constant map, which has nothing to show, becomes 0."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def overlay(pixels: Tensor, maps: Tensor, exponent: Tensor) -> Tensor:
    """The method's overlay: x' = 0.5 x + 0.5 minmax(g ** s), the map repeated over the channels.

    Args:
        pixels: float (B, 3, H, W) in [0, 1].
        maps: float (B, H, W), not negative.
        exponent: float (B,), s.

    Returns:
        float (B, 3, H, W) in [0, 1].
    """
    # Scaled to at most 1 first, which minmax undoes: a small map to the power of 2 would underflow.
    scaled = maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return 0.5 * pixels + 0.5 * minmax(scaled ** exponent[:, None, None])[:, None]


def draw_overlay(
    seed: int, epoch: int, ids: NDArray[np.int64], probability: float, exponents: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Which images are overlaid, bool (B,), and with which exponent, float (B,), log-uniform: a function of (seed, epoch, id)."""
    chosen = uniform(seed, f"epoch {epoch} overlay", ids) < probability
    low, high = np.log(exponents)
    exponent = np.exp(low + (high - low) * uniform(seed, f"epoch {epoch} exponent", ids))
    return torch.from_numpy(chosen), torch.from_numpy(exponent).float()
