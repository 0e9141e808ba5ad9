"""Maps against Captum, Gauss-Legendre by hand and closed forms."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from igkd.attribution import inputs_per_pass
from igkd.attribution.base import INPUTS_PER_PASS, LEAST_INPUTS_PER_PASS
from igkd.base.choices import Engine
from igkd.networks.network import Classifier, NetworkSpec, build
from tests.helpers.attributions import STEPS, StandIn, integrated_gradients, stand_in
from tests.helpers.networks import lively


class Positive(StandIn):
    """Nothing is subtracted from the pixels: with weights above 0 all attributions are above 0."""

    def normalise(self, pixels: Tensor) -> Tensor:
        return pixels / 0.25


# Passes of 4 (fewer than steps), 12, 64 and 2048 inputs of 16x16 pixels.
@pytest.mark.parametrize("limit", [1, 3, 16, 512])
def test_same_as_captum_image_by_image_whatever_the_chunks(
    model: Classifier, batch: tuple[Tensor, Tensor], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INPUTS_PER_PASS, "cpu", limit)
    assert inputs_per_pass("cpu", 256) == max(LEAST_INPUTS_PER_PASS, 4 * limit)
    pixels, labels = batch
    found = integrated_gradients(model, pixels, labels, STEPS)
    assert found.ig.shape == (7, 16, 16) and found.delta.shape == (7,) and found.logits.shape == (7, 3)
    assert {t.dtype for t in (found.ig, found.delta, found.logits)} == {torch.float32}
    engine = IntegratedGradients(model.from_normalised)
    for i in range(len(pixels)):
        x = model.normalise(pixels[i : i + 1])
        attributions, delta = engine.attribute(
            x, torch.zeros_like(x), int(labels[i]), n_steps=STEPS, method="gausslegendre", return_convergence_delta=True
        )
        expected = attributions[0].abs().sum(0)
        assert expected.max() > 1e-2
        assert (found.ig[i] - expected).abs().max() < 1e-5
        assert abs(found.delta[i] - delta[0]) < 1e-4
        torch.testing.assert_close(found.logits[i], model(pixels[i : i + 1])[0], rtol=1e-4, atol=1e-5)


def test_bytes_and_fractions_are_the_same_image(model: Classifier, engine: Engine) -> None:
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2])
    whole, fraction = (integrated_gradients(model, p, labels, STEPS, engine) for p in (pixels, pixels.float() / 255))
    assert torch.equal(whole.ig, fraction.ig) and torch.equal(whole.logits, fraction.logits)


def test_the_target_counts(model: Classifier, batch: tuple[Tensor, Tensor], engine: Engine) -> None:
    pixels, labels = batch
    one, two = (integrated_gradients(model, pixels, t, STEPS, engine).ig for t in (labels, (labels + 1) % 3))
    assert ((one - two).abs().amax(dim=(1, 2)) > 1e-3).all()


def test_nothing_of_the_network_changes(batch: tuple[Tensor, Tensor], engine: Engine) -> None:
    spec = NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name="mobilenet:cut=13,width=0.35")
    model, twin = lively(build(spec, 0)), lively(build(spec, 0))
    integrated_gradients(model, *batch, STEPS, engine)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_linear_network_has_attributions_weight_times_input(engine: Engine) -> None:
    model, pixels, labels, x = stand_in(StandIn, "linear")
    found = integrated_gradients(model, pixels, labels, 3, engine)
    expected = (model.weight[labels].view(6, 3, 5, 4) * x).abs().sum(dim=1)
    torch.testing.assert_close(found.ig, expected.detach(), rtol=1e-4, atol=1e-5)
    assert found.delta.abs().max() < 1e-4


def test_a_quadratic_network_has_a_closed_form(engine: Engine) -> None:
    # dF/dx_i = w_i (2 w.x + 1) along the path a x: its integral times x_i is w_i x_i (w.x + 1).
    model, pixels, labels, x = stand_in(StandIn, "square")
    found = integrated_gradients(model, pixels, labels, 2, engine)
    terms = model.weight[labels].view(6, 3, 5, 4) * x
    expected = (terms * (terms.sum(dim=(1, 2, 3), keepdim=True) + 1)).abs().sum(dim=1)
    torch.testing.assert_close(found.ig, expected.detach(), rtol=1e-4, atol=1e-4)
    assert found.delta.abs().max() < 1e-3


def gradient_by_hand(model: StandIn, label: int, x: np.ndarray) -> np.ndarray:
    """dF/dx of the softplus stand-in, (60,) to (60,), from its formula."""
    w = model.weight.detach().double().numpy()[label]
    return 4 * w / (1 + np.exp(-4 * w @ x))


@pytest.mark.parametrize("steps", [2, 5])
def test_same_as_gauss_legendre_by_hand(steps: int) -> None:
    model, pixels, labels, x = stand_in(StandIn, "softplus")
    found = integrated_gradients(model, pixels, labels, steps)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    for i, label in enumerate(labels.tolist()):
        flat = x[i].flatten().double().numpy()
        mean = sum(w / 2 * gradient_by_hand(model, label, (node + 1) / 2 * flat) for node, w in zip(nodes, weights, strict=True))
        np.testing.assert_allclose(found.ig[i], np.abs(flat * mean).reshape(3, 5, 4).sum(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["captum", "torch"])
def test_enough_steps_give_the_integral(engine: Engine) -> None:
    model, pixels, labels, x = stand_in(StandIn, "softplus")
    found = integrated_gradients(model, pixels, labels, 50 if engine == "captum" else 500, engine)
    for i, label in enumerate(labels.tolist()):
        flat = x[i].flatten().double().numpy()
        mean = np.mean([gradient_by_hand(model, label, (k + 0.5) / 4000 * flat) for k in range(4000)], axis=0)
        np.testing.assert_allclose(found.ig[i], np.abs(flat * mean).reshape(3, 5, 4).sum(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["captum", "torch"])
def test_delta_is_the_sum_of_attributions_less_the_rise_of_the_logit(engine: Engine) -> None:
    model, pixels, labels, x = stand_in(Positive, "softplus", positive=True)
    found = integrated_gradients(model, pixels, labels, 2, engine)
    with torch.no_grad():
        rise = (model.from_normalised(x) - model.from_normalised(0 * x)).gather(1, labels[:, None])[:, 0]
    expected = found.ig.sum(dim=(1, 2)) - rise
    assert expected.abs().min() > 0.05, "too exact to tell anything"
    torch.testing.assert_close(found.delta, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.logits, model.from_normalised(x).detach())


def test_the_completeness_error_shrinks_with_the_steps(model: Classifier, batch: tuple[Tensor, Tensor], engine: Engine) -> None:
    errors = [integrated_gradients(model, *batch, steps, engine).delta.abs().mean().item() for steps in (1, 16, 128)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_a_mirrored_image_has_a_mirrored_map(monkeypatch: pytest.MonkeyPatch) -> None:
    # An odd width keeps the centre in the grid of every stride, so that symmetric kernels make a network that commutes with the mirror.
    spec = NetworkSpec(
        classes=("a", "b", "c"), image_shape=(20, 33), name="mobilenet:cut=5,width=0.35", mean=(0.5, 0.45, 0.4), std=(0.24, 0.25, 0.26)
    )
    plain, symmetric = lively(build(spec, 0)), lively(build(spec, 0))
    with torch.no_grad():
        for module in symmetric.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
    monkeypatch.setitem(INPUTS_PER_PASS, "cpu", 16)
    pixels, labels = torch.rand(4, 3, 20, 33, generator=torch.Generator().manual_seed(4)), torch.tensor([0, 1, 2, 1])

    def difference(network: Classifier) -> tuple[Tensor, Tensor]:
        """For each image: how far the mirrored image's map is from the mirrored map, and from the map; both over the map's maximum."""
        here, there = (integrated_gradients(network, p, labels, STEPS).ig for p in (pixels, pixels.flip(-1)))
        assert here.shape == (4, 20, 33)
        largest = here.amax(dim=(1, 2))
        return tuple((there - m).abs().amax(dim=(1, 2)) / largest for m in (here.flip(-1), here))  # type: ignore[return-value]

    mirrored, unmoved = difference(symmetric)
    assert mirrored.max() < 1e-3
    assert unmoved.min() > 0.1
    assert difference(plain)[0].min() > 0.05, "any network would pass"
