import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from torch import Tensor

from igkd.evaluation import metrics


def some(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, classes, generator=generator), torch.randint(0, classes, (count,), generator=generator)


def sure(*confidences: float) -> Tensor:
    """Logits (N, 2) that answer 0 with these probabilities, each at least 1/2."""
    return torch.tensor([[math.log(c), math.log(1 - c)] for c in confidences], dtype=torch.float64)


def test_accuracies_by_hand() -> None:
    logits = torch.tensor([[2.0, 1, 0, 0], [0, 3, 1, 0], [0, 3, 1, 0], [9, 8, 7, 0], [0, 1, 5, 0]])
    labels = torch.tensor([0, 1, 2, 1, 2])
    assert metrics.correct(logits, labels) == 3
    assert metrics.class_accuracies(logits, labels) == [1.0, 0.5, 0.5, None]
    others = torch.tensor([[2.0, 1, 0, 0], [3, 0, 1, 0], [0, 3, 1, 0], [0, 8, 7, 0], [0, 6, 5, 0]])
    assert metrics.agreement(logits, others) == 0.4
    assert metrics.agreement(logits, logits * 7 - 2) == 1.0


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(0, 99))
def test_the_confusion_matrix_counts_one_by_one(count: int, classes: int, seed: int) -> None:
    logits, labels = some(count, classes, seed)
    pairs = Counter(zip(labels.tolist(), logits.argmax(1).tolist(), strict=True))
    expected = [[pairs[label, answer] for answer in range(classes)] for label in range(classes)]
    assert metrics.confusion(logits, labels).tolist() == expected


def test_negative_log_likelihood_is_scipys() -> None:
    logits, labels = some(50, 7)
    expected = -np.mean(log_softmax(logits.double().numpy(), axis=1)[np.arange(50), labels])
    assert metrics.negative_log_likelihood(logits, labels) == pytest.approx(expected, rel=1e-12)
    assert metrics.negative_log_likelihood(torch.zeros(3, 10), torch.tensor([1, 2, 3])) == pytest.approx(math.log(10))


def test_calibration_error_by_hand() -> None:
    # Bins of a fifteenth: 0.61 and 0.64 share (9/15, 10/15], 0.7 and 0.9 are alone.
    logits, labels = sure(0.61, 0.64, 0.7, 0.9), torch.tensor([0, 1, 1, 0])
    assert metrics.calibration_error(logits, labels) == pytest.approx((abs(1 - 0.61 - 0.64) + 0.7 + 0.1) / 4)
    assert metrics.calibration_error(logits, labels, bins=1) == pytest.approx(abs(2 - 0.61 - 0.64 - 0.7 - 0.9) / 4)


def test_an_edge_belongs_to_the_bin_below_it_and_certainty_to_the_last() -> None:
    logits = torch.cat([sure(0.5, 0.75), torch.tensor([[1000.0, 0.0]], dtype=torch.float64)])
    apart, together = (0.5 + abs(-0.75 + 0)) / 3, abs(0.5 - 0.75) / 3
    assert metrics.calibration_error(logits, torch.tensor([0, 1, 0]), bins=2) == pytest.approx(apart)
    assert metrics.calibration_error(logits, torch.tensor([0, 1, 0]), bins=1) == pytest.approx(together)
    assert metrics.calibration_error(logits[2:], torch.tensor([1])) == 1.0


def test_a_network_that_is_right_as_often_as_it_says_has_no_calibration_error() -> None:
    groups = [(0.55, 20, 11), (0.8, 10, 8), (0.95, 40, 38)]
    logits = torch.cat([sure(*[c] * count) for c, count, _ in groups])
    labels = torch.cat([torch.arange(count) >= right for _, count, right in groups]).long()
    assert metrics.calibration_error(logits, labels) == pytest.approx(0, abs=1e-12)
    bolder = torch.cat([sure(*[min(c + 0.04, 0.999)] * count) for c, count, _ in groups])
    excess = (0.04 * 30 + 0.04 * 40) / 70
    assert metrics.calibration_error(bolder, labels) == pytest.approx(excess)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 10**6), st.integers(1, 20))
def test_calibration_error_is_that_of_a_loop_over_bins(count: int, classes: int, seed: int, bins: int) -> None:
    logits, labels = some(count, classes, seed)
    probabilities = softmax(logits.double().numpy(), axis=1)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels.numpy()
    expected = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            expected += inside.sum() / count * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(logits, labels, bins) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.permutations(list(range(23))))
def test_the_order_of_images_does_not_matter(order: list[int]) -> None:
    logits, labels = some(23, 4)
    for metric in (
        metrics.correct,
        metrics.class_accuracies,
        metrics.negative_log_likelihood,
        metrics.calibration_error,
    ):
        assert metric(logits[order], labels[order]) == pytest.approx(metric(logits, labels), rel=1e-12)
