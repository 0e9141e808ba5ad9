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


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over batch and positions of the squared difference of two (B, h, w) attention maps: a scalar."""
    return torch.mean((teacher - student) ** 2)
