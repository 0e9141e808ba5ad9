"""Measures of a classifier's answers, as functions of logits and labels.

Logits are float (N, classes), labels int64 (N,), on the same device, N at least 1. Probabilities are computed in double precision.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def correct(logits: Tensor, labels: Tensor) -> int:
    """Number of images whose largest logit is that of their label."""
    return int((logits.argmax(1) == labels).sum())


def class_accuracies(logits: Tensor, labels: Tensor) -> list[float | None]:
    """Accuracy on each class's images; None for a class without images."""
    right = logits.argmax(1) == labels
    counts = torch.bincount(labels, minlength=logits.shape[1]).tolist()
    hits = torch.bincount(labels[right], minlength=logits.shape[1]).tolist()
    return [hit / count if count else None for hit, count in zip(hits, counts, strict=True)]


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """The confusion matrix: how many images of each class (row) got each answer (column), int64 (classes, classes)."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def most_confused(names: Sequence[str], shares: NDArray[np.float64]) -> list[str]:
    """The at most three classes that are most often taken for another, in words, such as "cat for dog (12.0 %)".

    Args:
        names: of the classes.
        shares: (classes, classes), the share of a class's (row) images with each answer; NaN for a class without images.
    """
    wrong = np.where(np.eye(len(names), dtype=bool), 0, np.nan_to_num(shares))
    most = [divmod(int(i), len(names)) for i in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    return [f"{names[i]} for {names[j]} ({100 * wrong[i, j]:.1f} %)" for i, j in most if wrong[i, j] > 0]


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log softmax(logits)[label], in nats: the cross-entropy that training minimises."""
    return F.cross_entropy(logits.double(), labels).item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    ECE = sum over m of |B_m| / N * |acc(B_m) - conf(B_m)|, where B_m are the images whose confidence, the largest probability, is in
    ((m - 1) / bins, m / bins], acc their accuracy and conf their mean confidence.

    Returns:
        in [0, 1]; 0 for a perfectly calibrated network.
    """
    confidence, answer = logits.double().softmax(1).max(1)
    edges = torch.arange(1, bins, device=logits.device, dtype=torch.float64) / bins
    bin_of = torch.bucketize(confidence, edges)  # an edge belongs to the bin below it
    excess = (answer == labels).double() - confidence
    return torch.zeros(bins, dtype=torch.float64, device=logits.device).index_add_(0, bin_of, excess).abs().sum().item() / len(labels)


def agreement(logits: Tensor, others: Tensor) -> float:
    """Share of images to which two networks give the same answer, right or wrong."""
    return (logits.argmax(1) == others.argmax(1)).double().mean().item()
