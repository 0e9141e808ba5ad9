"""The method's losses, to the formula (Hernandez, Chang, Nordling, arXiv 2503.13008)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation (Hinton et al. 2015): T^2 / B * sum KL(softmax(t / T) || softmax(s / T)).

    Args:
        student, teacher: logits, float (B, classes).
        temperature: T > 0.

    Returns:
        scalar.
    """
    s = F.log_softmax(student / temperature, dim=1)
    t = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(s, t, reduction="batchmean", log_target=True)


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


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over batch and positions of the squared difference of two (B, h, w) attention maps: a scalar."""
    return torch.mean((teacher - student) ** 2)
