"""Measures of attribution maps: overlap with the object, similarity to other maps, deletion and insertion.

Maps are float (N, H, W), one for each image, in any unit and not negative.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igkd.attribution.base import Colour, as_float
from igkd.base.errors import UserError
from igkd.base.random_draws import uniform
from igkd.networks.network import Classifier

Maps = NDArray[np.floating[Any]]
Figures = NDArray[np.float64]
"""(N,), one figure for each image."""


def check_finite(maps: Maps, ids: NDArray[np.int64], name: str) -> None:
    """Check that all values of maps are finite.

    Args:
        maps: (N, H, W).
        ids: int64 (N,), ids of their images.
        name: the network's name in messages.

    Raises:
        UserError: a map has a value that is not finite.
    """
    wrong = np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2)))
    if len(wrong):
        raise UserError(
            f"{name} gives a map of image {ids[wrong[0]]} that is not all finite numbers: its weights are of no use, or too large for "
            "single precision; train it anew"
        )


def mass_inside(maps: Maps, masks: NDArray[np.bool_]) -> Figures:
    """Share of each map's mass that lies on the object (the energy-based pointing game of Wang et al. 2020, Score-CAM).

    Args:
        masks: (N, H, W), True on the object.

    Returns:
        in [0, 1]; an all-zero map gets its mask's share of the image, like a uniform map.
    """
    total = maps.sum(axis=(1, 2), dtype=np.float64)
    inside = (maps * masks).sum(axis=(1, 2), dtype=np.float64)
    return np.asarray(np.where(total > 0, inside / np.where(total > 0, total, 1), masks.mean(axis=(1, 2))))


def pointing_hits(maps: Maps, masks: NDArray[np.bool_]) -> Figures:
    """Whether each map's largest value lies on the object (the pointing game of Zhang et al. 2018), 0 or 1 (N,); a map without contrast
    gets its mask's share of the image, like a point drawn at random."""
    flat = masks.reshape(len(masks), -1)
    hits = np.take_along_axis(flat, _flat(maps).argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.asarray(np.where(_even(maps), flat.mean(axis=1), hits), dtype=np.float64)


def cosine(a: Maps, b: Maps) -> Figures:
    """Cosine a.b / (|a| |b|) of each pair of maps over their pixels; 0 if one of them is all zero.

    Since maps are not negative, even unrelated maps have a cosine well above 0: compare it with a control.
    """
    return _cosine(_flat(a), _flat(b))


def rank_correlation(a: Maps, b: Maps) -> Figures:
    """Spearman's rank correlation of each pair of maps over their pixels; equal values get their mean rank; 0 if a map is constant."""
    from scipy.stats import rankdata  # here: its import costs a second of each process that trains, most of which compare no maps

    one, other = (rankdata(_flat(maps), axis=1) for maps in (a, b))
    return _cosine(one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True))


def top_overlap(a: Maps, b: Maps, share: float = 0.1) -> Figures:
    """Overlap of the k largest pixels of each pair of maps: |top_k(a) and top_k(b)| / k.

    k is `share` of the pixels, rounded, at least 1. Unrelated maps have an overlap of k / (H W) on average; so has a map without contrast
    with any other: none of its pixels is larger than another.
    """
    k = max(1, round(share * a[0].size))
    overlap = ((places(a) < k) & (places(b) < k)).sum(axis=(1, 2)) / k
    return np.asarray(np.where(_even(a) | _even(b), k / a[0].size, overlap))


def _even(maps: Maps) -> NDArray[np.bool_]:
    """Whether a map has one value everywhere: bool (N,)."""
    return np.asarray(np.ptp(_flat(maps), axis=1) == 0)


def places(maps: Maps) -> NDArray[np.int64]:
    """Rank (N, H, W) of each pixel in its map, 0 for the largest value; equal values are ranked in row-major order."""
    order = np.argsort(-_flat(maps), axis=1, kind="stable")
    return np.argsort(order, axis=1, kind="stable").reshape(maps.shape)  # the inverse of a permutation is its argsort


def random_maps(ids: NDArray[np.int64], shape: tuple[int, int], seed: int = 0) -> Figures:
    """Control maps (N, *shape) of independent uniform pixels: each a function of (seed, image id)."""
    pixels = np.arange(shape[0] * shape[1])
    return np.stack([uniform(seed, f"random map of image {i}", pixels).reshape(shape) for i in ids.tolist()])


def perturbation_curves(
    model: Classifier,
    pixels: Tensor,
    labels: Tensor,
    maps: Maps,
    steps: int = 16,
    batch_size: int = 250,
    baseline: Colour | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Deletion and insertion curves (Petsiuk, Das, Saenko 2018, "RISE"): the label's probability as pixels are deleted from the image, or
    inserted into the baseline image, in order of falling map values.

    Deleted pixels have the colour of the baseline of integrated gradients. After step k of `steps`, round(k H W / steps) pixels are
    deleted or inserted. A good map has a small area under the deletion curve and a large area under the insertion curve.

    Args:
        model: in evaluation mode.
        pixels: (N, 3, H, W), uint8 or float in [0, 1].
        labels: int64 (N,).
        baseline: a colour, RGB in [0, 1]; None is the network's mean colour, 0 in its normalised space.

    Returns:
        the label's probabilities during deletion and during insertion, each float64 (N, steps + 1).
    """
    device = next(model.parameters()).device
    colour = None if baseline is None else torch.tensor(baseline, device=device).view(1, -1, 1, 1)
    gone = torch.zeros(1, 1, 1, 1, device=device) if colour is None else model.normalise(colour)
    place = torch.from_numpy(places(maps)).unsqueeze(1)
    counts = [round(k * place[0].numel() / steps) for k in range(steps + 1)]
    curves = torch.empty(2, len(pixels), steps + 1, dtype=torch.float64)
    with torch.inference_mode():
        for rows in torch.arange(len(pixels)).split(batch_size):
            x = model.normalise(as_float(pixels[rows.to(pixels.device)]).to(device))
            target, position = labels[rows.to(labels.device)].to(device)[:, None], place[rows].to(device)
            for step, count in enumerate(counts):
                marked = position < count
                for curve, kept in zip(curves, (~marked, marked), strict=True):
                    logits = model.from_normalised(torch.where(kept, x, gone).contiguous(memory_format=torch.channels_last))
                    curve[rows, step] = logits.double().softmax(1).gather(1, target)[:, 0].cpu()
    return curves[0].numpy(), curves[1].numpy()


def areas(curves: NDArray[np.float64]) -> Figures:
    """Area under each curve (N, points), by the trapezoid rule; the points are evenly spaced shares of pixels from 0 to 1."""
    return np.asarray(np.trapezoid(curves, dx=1 / (curves.shape[1] - 1), axis=1))


def _flat(maps: Maps) -> NDArray[np.float64]:
    return maps.reshape(len(maps), -1).astype(np.float64)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> Figures:
    """Cosine of each pair of rows; 0 if either row is all zeros."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1))
