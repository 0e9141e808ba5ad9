"""What a trained network is worth beside its accuracy: where its maps fall, and how fast it is."""

import statistics
import time
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def mass_inside(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of each map's mass that lies on the object (the energy-based pointing game of Wang et al. 2020, Score-CAM).

    Args:
        maps: (N, H, W), not negative.
        masks: (N, H, W), True on the object.

    Returns:
        float64 (N,) in [0, 1]; a map without any mass has its mask's share of the image, as a uniform map has.
    """
    total = maps.sum(axis=(1, 2), dtype=np.float64)
    inside = (maps * masks).sum(axis=(1, 2), dtype=np.float64)
    return np.asarray(np.where(total > 0, inside / np.where(total > 0, total, 1), masks.mean(axis=(1, 2))))


def pointing_hits(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each map's largest value lies on the object (the pointing game of Zhang et al. 2018): bool (N,)."""
    peaks = maps.reshape(len(maps), -1).argmax(axis=1)
    return np.asarray(np.take_along_axis(masks.reshape(len(masks), -1), peaks[:, None], axis=1)[:, 0], dtype=np.bool_)


def latencies(models: Mapping[str, nn.Module], shape: tuple[int, int], batch: int, rounds: int = 20) -> dict[str, float]:
    """Median milliseconds of a forward pass, warm, the models taking turns so that all meet the same machine.

    Args:
        models: by name, in evaluation mode, on one device.
        shape: (H, W) of the images.
        batch: images a pass.
        rounds: passes of each model that count; two more before them do not.
    """
    device = next(next(iter(models.values())).parameters()).device
    images = torch.rand(batch, 3, *shape, device=device).contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for name, model in models.items():
                if device.type == "cuda":
                    torch.cuda.synchronize()
                begin = time.perf_counter()
                model(images)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn >= 2:
                    times[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}
