"""Baselines of a colour, and the methods besides integrated gradients."""

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from igkd.attribution import attributor, reference
from igkd.base.choices import Engine, Method
from igkd.networks.network import Classifier
from tests.helpers.attributions import STEPS, integrated_gradients, least_cosine


@pytest.mark.parametrize("colour", [(0.9, 0.1, 0.5), (0.3,)])
def test_maps_from_a_colour_are_captums_from_that_baseline(
    model: Classifier, batch: tuple[Tensor, Tensor], engine: Engine, colour: tuple[float, ...]
) -> None:
    pixels, labels = batch
    found = attributor(model, "ig", engine, STEPS, colour)(pixels, labels, torch.arange(7))
    x, start = model.normalise(pixels), model.normalise(torch.tensor(colour).view(1, -1, 1, 1).expand(7, 3, 16, 16))
    how = "gausslegendre" if engine == "captum" else "riemann_middle"
    attributions, delta = IntegratedGradients(model.from_normalised).attribute(
        x, start, labels, n_steps=STEPS, method=how, return_convergence_delta=True
    )
    assert least_cosine(found.ig, attributions.abs().sum(dim=1)) > 0.9999
    torch.testing.assert_close(found.delta, delta, rtol=0.01, atol=0.01)
    torch.testing.assert_close(found.logits, model(pixels).detach(), rtol=1e-4, atol=1e-5)
    assert least_cosine(found.ig, attributor(model, "ig", engine, STEPS)(pixels, labels, torch.arange(7)).ig) < 0.98


@pytest.mark.parametrize("method", ["ig", "input-x-gradient", "smoothgrad-ig"])
def test_a_networks_own_mean_colour_is_the_baseline_it_has_anyway(model: Classifier, batch: tuple[Tensor, Tensor], method: Method) -> None:
    for engine in ("captum", "torch") if method == "ig" else ("captum",):
        one, two = (attributor(model, method, engine, 3, b)(*batch, torch.arange(7)).ig for b in (None, model.spec.mean))
        assert torch.equal(one, two)


def test_input_x_gradient_from_a_colour_by_hand(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    found = attributor(model, "input-x-gradient", "captum", 1, (0.2, 0.4, 0.6))(*batch, torch.arange(7))
    x = model.normalise(batch[0]).requires_grad_()
    start = model.normalise(torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1))
    model.from_normalised(x).gather(1, batch[1][:, None]).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(found.ig, ((x - start) * x.grad).abs().sum(dim=1).detach(), rtol=1e-4, atol=1e-5)


def test_input_x_gradient_by_hand(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    found = attributor(model, "input-x-gradient", "captum", 1)(*batch, torch.arange(7))
    x = model.normalise(batch[0]).requires_grad_()
    model.from_normalised(x).gather(1, batch[1][:, None]).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(found.ig, (x * x.grad).abs().sum(dim=1).detach(), rtol=1e-4, atol=1e-5)
    rise = (model.from_normalised(x) - model.from_normalised(0 * x)).gather(1, batch[1][:, None])[:, 0]
    torch.testing.assert_close(found.delta, ((x * x.grad).sum(dim=(1, 2, 3)) - rise).detach(), rtol=1e-3, atol=1e-3)


def test_smoothgrad_is_the_mean_over_noise_fixed_by_the_images_id(
    model: Classifier, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth, (pixels, labels) = attributor(model, "smoothgrad-ig", "captum", STEPS), batch
    before = torch.get_rng_state()
    found = smooth(pixels, labels, torch.arange(7)).ig
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    turned = torch.tensor([4, 2, 0])
    torch.testing.assert_close(smooth(pixels[turned], labels[turned], turned).ig, found[turned], rtol=0, atol=0)
    other = smooth(pixels[:1], labels[:1], torch.tensor([1])).ig
    assert (other - found[:1]).abs().max() > 1e-3
    monkeypatch.setattr(reference, "SMOOTHGRAD_NOISE", 1e-9)
    torch.testing.assert_close(
        smooth(pixels, labels, torch.arange(7)).ig, integrated_gradients(model, *batch, STEPS).ig, rtol=1e-3, atol=1e-4
    )
