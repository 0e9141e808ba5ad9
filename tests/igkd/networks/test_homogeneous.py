"""Networks without biases: F(a x) = a F(x) in evaluation, and a normalisation that only divides."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from igkd.attribution.base import FromBaseline
from igkd.attribution.fast import folded
from igkd.base.errors import UserError
from igkd.deployment import formats
from igkd.networks.airbench import first_filters
from igkd.networks.checkpoint import load, save
from igkd.networks.homogeneous import CentredConv2d, ScaleNorm2d
from igkd.networks.network import Classifier, NetworkSpec, build, multiply_adds, parameter_count
from tests.helpers.networks import lively, same_state

NAMES = ["lean:2:6x1,8x2", "airbench:6,8"]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Classifier:
    name = f"homogeneous:{request.param.removeprefix('lean:')}"
    spec = NetworkSpec(classes=("a", "b", "c"), image_shape=(12, 12), name=name, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    return lively(build(spec, 0))


def pictures(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("factor", [0.0, 1e-6, 0.3, 2.0, 1e4])
def test_the_answer_grows_with_the_picture(model: Classifier, factor: float) -> None:
    x = pictures()
    with torch.no_grad():
        expected = factor * model.double().from_normalised(x.double())
        torch.testing.assert_close(model.from_normalised(factor * x.double()), expected, rtol=1e-12, atol=0)


def test_it_still_does_after_steps_of_training(model: Classifier) -> None:
    """Training moves every tensor that a step can move; none of them may be a shift."""
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.from_normalised(3 + pictures()), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in before if "running_mean" not in name} == moved
    x = pictures().double()
    with torch.no_grad():
        model.eval().double()
        torch.testing.assert_close(model.from_normalised(7 * x), 7 * model.from_normalised(x), rtol=1e-12, atol=0)


def test_no_parameter_is_a_bias_and_the_rest_is_that_of_the_network_with_biases(model: Classifier) -> None:
    (name,) = (name for name in NAMES if name.endswith(model.spec.name.removeprefix("homogeneous:")))
    biased = build(dataclasses.replace(model.spec, name=name), 0)
    ours, theirs = ({name: p.shape for name, p in one.named_parameters()} for one in (model, biased))
    assert ours == {name: shape for name, shape in theirs.items() if not name.endswith("bias")}
    assert parameter_count(model) < parameter_count(biased) and multiply_adds(model) == multiply_adds(biased)


def test_filters_have_mean_0_whatever_is_added_to_them(model: Classifier) -> None:
    """With and without gradients, by convolutions that torch computes from the centred weights."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if "airbench" in model.spec.name:  # whose first filters see pixels of both signs, and one of them is brightness
        first = convolutions.pop(0)
        assert type(first) is nn.Conv2d and torch.equal(first.weight, first_filters()) and first.bias is None
        assert len(convolutions) == 4
    else:
        assert len(convolutions) == 8 and any(module.kernel_size == (1, 1) for module in convolutions)
    for module in convolutions:
        assert isinstance(module, CentredConv2d) and module.bias is None
        with torch.no_grad():
            module.weight.add_(torch.randn(len(module.weight), 1, 1, 1))
        x, filters = torch.randn(2, module.in_channels, 7, 6), module.weight - module.weight.mean(dim=(1, 2, 3), keepdim=True)
        expected = nn.functional.conv2d(x, filters, None, module.stride, module.padding)
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_the_norm_by_hand() -> None:
    """Output and running statistics in numpy, gradients by finite differences."""
    layer, x = ScaleNorm2d(3).double(), 2 + 3 * torch.randn(4, 3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -2.0, 1.5]))
    given = layer(x).detach().numpy()
    squares = (x.numpy() ** 2).mean(axis=(0, 2, 3))
    shape = (1, 3, 1, 1)
    np.testing.assert_allclose(
        given, x.numpy() / np.sqrt(squares + 1e-5).reshape(shape) * layer.weight.detach().numpy().reshape(shape), 1e-6
    )
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * squares, 1e-6)
    assert not layer.running_mean.any()
    given = layer.eval()(x).detach().numpy()
    np.testing.assert_allclose(
        given, x.numpy() * (layer.weight.detach() * (layer.running_var + 1e-5).rsqrt()).numpy().reshape(shape), 1e-12
    )


def test_gradients_of_the_norm_are_those_of_the_formula() -> None:
    layer, weight = ScaleNorm2d(3), torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(2))
    x = 2 + 3 * torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0))

    def gradients(y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((y * weight).sum(), [x, layer.weight])

    ours = x.clone().requires_grad_()
    exact = x.double().requires_grad_()
    by_formula = exact / (exact.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt() * layer.weight.view(1, -1, 1, 1)
    for one, other in zip(gradients(layer(ours), ours), gradients(by_formula, exact), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-5)


def test_its_norms_fold_and_its_files_give_what_it_gives(model: Classifier) -> None:
    x = pictures()
    with torch.no_grad():
        network, why = folded(FromBaseline(model, None).eval(), x.shape[1:])
        expected = model.from_normalised(x)
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert why == "" and left == (2 if "airbench" in model.spec.name else 0)  # those after a pooling
    pixels = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
    with torch.no_grad():
        answers = model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(formats.run_onnx(formats.to_onnx(model), pixels), answers, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_gives_back_every_bit(model: Classifier, tmp_path: Path) -> None:
    save(model, tmp_path, {})
    back = load(tmp_path)
    assert back.spec == model.spec and same_state(model, back)


@pytest.mark.parametrize("name", ["homogeneous", "homogeneous:", "homogeneous:3:8x1", "homogeneous:2:8x0", "homogeneous:2:08x1"])
def test_what_names_none_is_refused_by_its_own_name(name: str) -> None:
    with pytest.raises(UserError, match=r"homogeneous\S* names no network; one is homogeneous:2:32x1"):
        NetworkSpec(classes=("a",), image_shape=(8, 8), name=name)
    with pytest.raises(UserError, match=r"homogeneous:airbench:6,0' names no network; one is homogeneous:airbench:32,128,128"):
        NetworkSpec(classes=("a",), image_shape=(8, 8), name="homogeneous:airbench:6,0")
