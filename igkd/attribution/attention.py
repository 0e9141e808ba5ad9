"""Attention maps: where in the image a layer's activations are large."""

import torch.nn.functional as F
from torch import Tensor

from igkd.images.views import View, move, warp


def attention_map(features: Tensor) -> Tensor:
    """Attention map of a layer (Zagoruyko, Komodakis 2017): the mean over channels of F^2, L2-normalised.

    Args:
        features: float (B, C, h, w), the layer's activations F.

    Returns:
        float (B, h, w), each map of Euclidean norm 1; all zero if the features are all zero.
    """
    return normalise_map(features.pow(2).mean(dim=1))


def normalise_map(maps: Tensor) -> Tensor:
    """Scale maps (B, h, w) to Euclidean norm 1; an all-zero map stays zero."""
    return F.normalize(maps.flatten(1), dim=1).view_as(maps)


def resize_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate attention maps (B, h, w) to another size and scale them to norm 1 again; maps of that size are returned unchanged."""
    if tuple(maps.shape[1:]) == size:
        return maps
    resized = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False, antialias=True)
    return normalise_map(resized[:, 0])


def moved_attention(maps: Tensor, view: View, image_shape: tuple[int, int]) -> Tensor:
    """Apply a view of the image to its coarser attention maps, bilinearly, and bring them back to norm 1.

    Args:
        maps: float (B, h, w).
        image_shape: (H, W) that the view's offsets refer to.

    Returns:
        float (B, h, w).
    """
    if view.resized:
        return normalise_map(move(maps, view, image_shape))
    return normalise_map(warp(maps, view.to(maps.device).affine(image_shape)))
