"""Attention maps: where a layer is active."""

import torch.nn.functional as F
from torch import Tensor


def attention_map(features: Tensor) -> Tensor:
    """Where a layer is active (Zagoruyko, Komodakis 2017): L2-normalised mean over channels of F^2.

    Args:
        features: float (B, C, h, w).

    Returns:
        float (B, h, w), each map of Euclidean norm 1 (all zero where the features are).
    """
    return normalise_map(features.pow(2).mean(dim=1))


def normalise_map(maps: Tensor) -> Tensor:
    """(B, h, w) maps scaled to Euclidean norm 1; a zero map stays zero."""
    return F.normalize(maps.flatten(1), dim=1).view_as(maps)


def resize_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) attention maps interpolated to another size and back at norm 1; of the same size they stay as they are."""
    if tuple(maps.shape[1:]) == size:
        return maps
    resized = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False, antialias=True)
    return normalise_map(resized[:, 0])
