import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from igkd.attribution.attention import attention_map, normalise_map
from igkd.config.distill import DistillConfig
from igkd.networks.network import build
from igkd.training.terms.attention import attention_transfer
from igkd.training.terms.decoupled import decoupled_distillation
from igkd.training.terms.distillation import distillation
from igkd.training.terms.standardised import standardised
from tests.helpers.training import TINY, loss_of, random_samples


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in logits]
    return [p / sum(powers) for p in powers]


def distillation_by_hand(student: list[list[float]], teacher: list[list[float]], temperature: float) -> float:
    total = 0.0
    for s_logits, t_logits in zip(student, teacher, strict=True):
        s, t = softmax(s_logits, temperature), softmax(t_logits, temperature)
        total += sum(q * math.log(q / p) for p, q in zip(s, t, strict=True))
    return temperature**2 / len(student) * total


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(2, 11), st.floats(0.5, 20), st.integers(0, 999))
def test_distillation_is_the_formula(batch: int, classes: int, temperature: float, seed: int) -> None:
    student, teacher = 3 * normal(batch, classes, seed=seed), 3 * normal(batch, classes, seed=seed + 1)
    expected = distillation_by_hand(student.tolist(), teacher.tolist(), temperature)
    assert distillation(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    kl = torch.nn.KLDivLoss(reduction="batchmean")
    theirs = temperature**2 * kl(torch.log_softmax(student / temperature, 1), torch.softmax(teacher / temperature, 1))
    assert distillation(student, teacher, temperature).item() == pytest.approx(theirs.item(), rel=1e-9, abs=1e-12)
    assert expected > 0


def test_distillation_is_zero_only_where_the_distributions_agree() -> None:
    logits = normal(5, 10)
    assert distillation(logits, logits, 2.5).item() == 0
    assert abs(distillation(logits + 4.0, logits, 2.5).item()) < 1e-12
    assert distillation(logits.flip(1), logits, 2.5).item() > 0.1


def test_distillation_survives_logits_of_a_sure_teacher() -> None:
    student = torch.tensor([[0.0, 1e4, 0.0]], requires_grad=True)
    loss = distillation(student, torch.tensor([[1e4, 0.0, 0.0]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[-1.0, 1.0, 0.0]]))


def test_gradient_of_distillation() -> None:
    student, teacher, temperature = normal(4, 6).requires_grad_(), normal(4, 6, seed=1), 2.5
    assert torch.autograd.gradcheck(lambda s: distillation(s, teacher, temperature), (student,))
    (gradient,) = torch.autograd.grad(distillation(student, teacher, temperature), student)
    closed = temperature / 4 * (torch.softmax(student / temperature, 1) - torch.softmax(teacher / temperature, 1))
    torch.testing.assert_close(gradient, closed.detach())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.integers(0, 999))
def test_attention_map_is_the_formula(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    features = normal(batch, channels, height, width, seed=seed)
    f, got = features.numpy(), attention_map(features).numpy()
    assert got.shape == (batch, height, width)
    for b in range(batch):
        energy = np.zeros((height, width))
        for y in range(height):
            for x in range(width):
                energy[y, x] = sum(f[b, c, y, x] ** 2 for c in range(channels)) / channels
        norm = math.sqrt(sum(energy[y, x] ** 2 for y in range(height) for x in range(width)))
        np.testing.assert_allclose(got[b], energy / norm, rtol=1e-9, atol=1e-12)


def test_attention_ignores_scale_and_sign_and_order_of_channels() -> None:
    features = normal(3, 4, 5, 6)
    expected = attention_map(features)
    torch.testing.assert_close(attention_map(-7 * features), expected)
    torch.testing.assert_close(attention_map(features.flip(1)), expected)
    torch.testing.assert_close(attention_map(features.flip(3)), expected.flip(2))
    torch.testing.assert_close(expected.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_dead_features_give_a_zero_map_and_a_finite_gradient() -> None:
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    maps = attention_map(features)
    attention_transfer(maps, normalise_map(torch.ones(2, 4, 4))).backward()
    assert not maps.any()
    assert features.grad is not None and features.grad.isfinite().all()
    assert not normalise_map(torch.zeros(2, 3, 4)).any()


def test_attention_transfer_is_the_mean_over_batch_and_positions() -> None:
    student, teacher = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    s, t = student.numpy(), teacher.numpy()
    total = sum((t[b, y, x] - s[b, y, x]) ** 2 for b in range(3) for y in range(4) for x in range(5))
    assert attention_transfer(student, teacher).item() == pytest.approx(total / 60, rel=1e-12)
    assert attention_transfer(student, student).item() == 0


def test_gradients_of_attention() -> None:
    features, teacher = normal(2, 3, 3, 4).requires_grad_(), attention_map(normal(2, 5, 3, 4, seed=1))
    assert torch.autograd.gradcheck(attention_map, (features,))
    assert torch.autograd.gradcheck(lambda f: attention_transfer(attention_map(f), teacher), (features,))


def decoupled_by_hand(student: list[list[float]], teacher: list[list[float]], labels: list[int], temperature: float, beta: float) -> float:
    total = 0.0
    for s_logits, t_logits, label in zip(student, teacher, labels, strict=True):
        s, t = softmax(s_logits, temperature), softmax(t_logits, temperature)
        p, q = s[label], t[label]
        total += q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        others = [(a / (1 - p), b / (1 - q)) for i, (a, b) in enumerate(zip(s, t, strict=True)) if i != label]
        total += beta * sum(b * math.log(b / a) for a, b in others)
    return temperature**2 / len(student) * total


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.floats(0.7, 10), st.floats(0, 8), st.integers(0, 999))
def test_decoupled_distillation_is_the_formula(batch: int, classes: int, temperature: float, beta: float, seed: int) -> None:
    student, teacher, labels = (
        2 * normal(batch, classes, seed=seed),
        2 * normal(batch, classes, seed=seed + 1),
        torch.arange(batch) % classes,
    )
    expected = decoupled_by_hand(student.tolist(), teacher.tolist(), labels.tolist(), temperature, beta)
    assert decoupled_distillation(student, teacher, labels, temperature, beta).item() == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_distillation_is_decoupled_distillation_with_beta_as_the_teacher_is_unsure() -> None:
    """Zhao et al. 2022, eq. 6: KD = TCKD + (1 - p) NCKD."""
    for seed in range(5):
        student, teacher, label, temperature = normal(1, 7, seed=seed), 2 * normal(1, 7, seed=seed + 1), torch.tensor([seed]), 2.5
        beta = 1 - torch.softmax(teacher / temperature, dim=1)[0, seed].item()
        expected = distillation(student, teacher, temperature).item()
        assert decoupled_distillation(student, teacher, label, temperature, beta).item() == pytest.approx(expected, rel=1e-9)


def test_decoupled_distillation_survives_a_sure_teacher_and_has_the_right_gradient() -> None:
    student, labels = normal(4, 6).requires_grad_(), torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(lambda s: decoupled_distillation(s, normal(4, 6, seed=1), labels, 4.0, 8.0), (student,))
    sure = torch.tensor([[1e4, 0.0, 0.0]])
    logits = torch.tensor([[0.0, 1e4, 0.0]], requires_grad=True)
    decoupled_distillation(logits, sure, torch.tensor([0]), 4.0, 8.0).backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad[0, 0] < 0


@pytest.mark.parametrize("spread", [0.0, 1e-6])
def test_equal_logits_of_a_student_get_a_gradient_that_it_survives(spread: float) -> None:
    """A last layer that begins with zeros: divided by its deviation alone, the gradient was some millions."""
    own = (spread * normal(4, 10, dtype=torch.float32)).requires_grad_()
    distillation(standardised(own), standardised(normal(4, 10, dtype=torch.float32)), 2.0).backward()
    assert own.grad is not None and 0 < own.grad.abs().max() < 200


def test_standardised_logits_are_numpys_and_tell_neither_size_nor_shift() -> None:
    logits = 3 * normal(4, 9) + 5
    expected = (logits.numpy() - logits.numpy().mean(1, keepdims=True)) / logits.numpy().std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(standardised(logits).numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(standardised(7 * logits - 3), standardised(logits), rtol=1e-6, atol=1e-6)
    equal = torch.full((2, 4), 3.0, requires_grad=True)
    distillation(standardised(equal), standardised(normal(2, 4, dtype=torch.float32)), 2.0).backward()
    assert not standardised(equal).any() and equal.grad is not None and equal.grad.isfinite().all()
    assert torch.autograd.gradcheck(standardised, (logits.requires_grad_(),))


@pytest.mark.parametrize("arm", ["dkd", "lskd", "kd+map+dkd+lskd"])
def test_the_loss_of_further_arms_is_the_weighted_sum(arm: str) -> None:
    samples, model = random_samples(6), build(TINY, 1).eval()
    config = DistillConfig(
        store="s", out="o", arm=arm, alpha=0.3, temperature=3.0, dkd=0.5, beta=2.0, lskd=4.0, map_weight=0.0, overlay=1.0
    )
    loss, s = loss_of(model, samples, config.objective, seed=0, epoch=1, padding=0)
    t = samples.signals["logits"]
    alpha = 0.3 if "kd" in arm.split("+") else 0.0
    expected = (1 - alpha) * torch.nn.functional.cross_entropy(s, samples.labels) + alpha * distillation(s, t, 3.0)
    if "dkd" in arm.split("+"):
        expected += 0.5 * decoupled_distillation(s, t, samples.labels, 3.0, 2.0)
    if "lskd" in arm.split("+"):
        expected += 4.0 * distillation(standardised(s), standardised(t), 3.0)
    torch.testing.assert_close(loss, expected)
