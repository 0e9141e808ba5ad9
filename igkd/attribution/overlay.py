"""The overlay: how an image is blended with its attribution map, or with a control."""

import torch
from torch import Tensor

from igkd.base.choices import Content


def minmax(maps: Tensor) -> Tensor:
    """Scale each of B maps (B, H, W) to [0, 1]; a constant map becomes 0."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def overlay(pixels: Tensor, layer: Tensor, blend: float = 0.5) -> Tensor:
    """The overlay: x' = (1 - blend) x + blend * layer, with the layer repeated over the channels.

    Args:
        pixels: float (B, 3, H, W) in [0, 1].
        layer: float (B, H, W) in [0, 1].

    Returns:
        float (B, 3, H, W) in [0, 1].
    """
    return (1 - blend) * pixels + blend * layer[:, None]


def sharpen(maps: Tensor, exponent: Tensor) -> Tensor:
    """minmax(g ** s) for maps g, float (B, H, W), not negative, and exponents s (B,): float (B, H, W) in [0, 1]."""
    # Divide by the maximum first, lest the power of a map with small values underflows; minmax cancels that factor.
    scaled = maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return minmax(scaled ** exponent[:, None, None])


def content_of(content: Content, maps: Tensor, masks: Tensor | None, order: Tensor | None) -> Tensor:
    """What is used as the maps of B images: their maps, or a control that shares only some properties with a map.

    Args:
        maps: float (B, H, W), cropped and flipped like the images; for "other", maps of other images.
        masks: uint8 (B, H, W), cropped and flipped like the images; used for "mask".
        order: int64 (B, H * W), a permutation of the pixels for each image; used for "noise".

    Returns:
        float (B, H, W): the map ("own", "other"); its pixels in random order, which keeps its histogram ("noise"); its mean at every pixel,
        which keeps its brightness ("brightness"); the mask, 0 or 1 ("mask"); or zeros ("black").
    """
    if content == "black":
        return torch.zeros_like(maps)
    if content == "mask":
        assert masks is not None
        return masks.to(maps.dtype)
    if content == "brightness":
        return maps.mean(dim=(1, 2), keepdim=True).expand_as(maps)
    if content == "noise":
        assert order is not None
        return maps.flatten(1).gather(1, order).view_as(maps)
    return maps
