"""The largest logits and the rest's mass: against the whole softmax, and the loss against the whole KL."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from igkd.store.top_logits import TEMPERATURES, TopLogits, largest, unpacked
from igkd.training.terms.distillation import distillation, distillation_of_top


def logits(count: int, classes: int, spread: float = 3.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def kept(given: Tensor, k: int) -> TopLogits:
    return unpacked(*largest(given, k))


def lumped(given: Tensor, classes: Tensor, temperature: float) -> np.ndarray:
    """The softmax by hand, in double precision: the probabilities of the named classes, and that of all others together."""
    found = []
    for row, names in zip((given.double() / temperature).numpy(), classes.tolist(), strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        found.append([*p[names], 1 - p[names].sum()])
    return np.array(found)


def kl_by_hand(student: Tensor, teacher: Tensor, classes: Tensor, temperature: float) -> float:
    """T^2 times the mean over the images of sum t log(t / s), over k + 1 outcomes."""
    t, s = (lumped(one, classes, temperature) for one in (teacher, student))
    return temperature**2 * float((t * np.log(t / s)).sum(axis=1).mean())


def test_the_largest_logits_are_kept_with_their_classes() -> None:
    given = logits(7, 300)
    top = kept(given, 32)
    assert top.classes.dtype == torch.int64 and top.logits.dtype == torch.float32 and top.rest.shape == (7, 3)
    order = np.argsort(-given.numpy(), axis=1)[:, :32]
    assert np.array_equal(top.classes.numpy(), order)
    assert torch.equal(top.logits, given.gather(1, top.classes))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_mass_of_the_rest_is_exact_at_the_temperatures_that_are_kept(temperature: float) -> None:
    given = logits(9, 1000)
    top = kept(given, 32)
    found = torch.softmax(top.at(temperature, 1000), dim=1)
    np.testing.assert_allclose(found.numpy(), lumped(given, top.classes, temperature), rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 1000), st.floats(0.1, 3), st.integers(8, 64), st.sampled_from([257, 1000, 5000]), st.integers(0, 99))
def test_and_near_to_that_in_between(temperature: float, spread: float, k: int, classes: int, seed: int) -> None:
    given = logits(3, classes, spread, seed)
    top = kept(given, k)
    found = torch.softmax(top.at(temperature, classes), dim=1)
    np.testing.assert_allclose(found.numpy(), lumped(given, top.classes, temperature), atol=0.005)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1.0, 2.0, 4.0]), st.integers(1, 40), st.integers(0, 99))
def test_the_loss_is_the_kl_of_k_and_one_outcomes_by_hand(temperature: float, k: int, seed: int) -> None:
    teacher, student = logits(5, 60, 2.0, seed), logits(5, 60, 2.0, seed + 100)
    top = kept(teacher, k)
    found = distillation_of_top(student, top, temperature).item()
    assert found == pytest.approx(kl_by_hand(student, teacher, top.classes, temperature), rel=1e-3, abs=1e-5)
    # Outcomes that are lumped together can only hide differences (data processing inequality).
    assert found <= distillation(student, teacher, temperature).item() + 1e-4


@pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])
def test_with_all_classes_but_one_it_is_the_whole_kl_and_so_are_its_gradients(temperature: float) -> None:
    teacher, student = logits(6, 30), logits(6, 30, seed=1).requires_grad_()
    whole = distillation(student, teacher, temperature)
    (expected,) = torch.autograd.grad(whole, student)
    part = distillation_of_top(student, kept(teacher, 29), temperature)
    (found,) = torch.autograd.grad(part, student)
    # The rest is then one logit, and its log-sum-exp at T is that logit divided by T: a straight line, which a cubic gives exactly.
    torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_student_that_agrees_loses_nothing_and_learns_nothing() -> None:
    teacher = logits(4, 300)
    student = teacher.clone().requires_grad_()
    loss = distillation_of_top(student, kept(teacher, 32), 4.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert abs(loss.item()) < 1e-5 and gradient.abs().max() < 1e-5


def test_float16_changes_the_loss_little() -> None:
    teacher, student = logits(16, 1000), logits(16, 1000, seed=1)
    values, classes = largest(teacher, 32)
    exact, rounded = (distillation_of_top(student, unpacked(one, classes), 4.0).item() for one in (values, values.half()))
    assert rounded == pytest.approx(exact, rel=2e-3)


def test_a_temperature_below_one_is_no_guess() -> None:
    with pytest.raises(ValueError, match="below 1"):
        kept(logits(2, 300), 32).at(0.5, 300)


def test_equal_logits() -> None:
    top = kept(torch.zeros(1, 400), 10)
    for temperature in (1.0, 3.0, 50.0):
        found = torch.softmax(top.at(temperature, 400), dim=1)
        assert found[0, -1].item() == pytest.approx(390 / 400, rel=1e-5) and math.isclose(found.sum().item(), 1, rel_tol=1e-6)
