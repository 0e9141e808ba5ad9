"""The overlay: how a map, or a control in its place, is laid over an image."""

import torch
from torch import Tensor

from igkd.base.choices import Content


def minmax(maps: Tensor) -> Tensor:
    """Scale each (H, W) map of (B, H, W) to [0, 1]; a constant map, which has nothing to show, becomes 0."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def overlay(pixels: Tensor, layer: Tensor, blend: float = 0.5) -> Tensor:
    """The method's overlay: x' = (1 - blend) x + blend * layer, the layer repeated over the channels.

    Args:
        pixels: float (B, 3, H, W) in [0, 1].
        layer: float (B, H, W) in [0, 1].

    Returns:
        float (B, 3, H, W) in [0, 1].
    """
    return (1 - blend) * pixels + blend * layer[:, None]


def sharpen(maps: Tensor, exponent: Tensor) -> Tensor:
    """minmax(g ** s): float (B, H, W) maps, not negative, and exponents s (B,), to float (B, H, W) in [0, 1]."""
    # Scaled to at most 1 first, which minmax undoes: a small map to the power of 2 would underflow.
    scaled = maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return minmax(scaled ** exponent[:, None, None])


def layer_of(content: Content, maps: Tensor, masks: Tensor | None, exponent: Tensor, order: Tensor | None) -> Tensor:
    """What is laid over B images: their maps, or a control that has only some of what a map has.

    Args:
        maps: float (B, H, W), cropped and flipped with the image; for "other" those of other images.
        masks: uint8 (B, H, W), likewise, for "mask".
        exponent: float (B,).
        order: int64 (B, H * W), a permutation each, for "noise".

    Returns:
        float (B, H, W) in [0, 1]: the sharpened map ("own", "other"); its pixels in random order, so that each image keeps its
        histogram ("noise"); its mean everywhere, so that each keeps its brightness ("brightness"); the mask; or nothing ("black").
    """
    if content == "black":
        return torch.zeros_like(maps)
    if content == "mask":
        assert masks is not None
        return masks.to(maps.dtype)
    layer = sharpen(maps, exponent)
    if content == "brightness":
        return layer.mean(dim=(1, 2), keepdim=True).expand_as(layer)
    if content == "noise":
        assert order is not None
        return layer.flatten(1).gather(1, order).view_as(layer)
    return layer
