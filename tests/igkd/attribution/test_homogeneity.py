"""Homogeneous networks take one pass; what is almost homogeneous does not."""

import dataclasses
from pathlib import Path

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from igkd.attribution import attributor, find_engine, quadrature, takes_one_pass
from igkd.attribution.homogeneity import is_homogeneous
from igkd.base.choices import Engine
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.networks.open import open_teacher
from tests.helpers.modules import write_module
from tests.helpers.networks import lively

SPEC = NetworkSpec(classes=("a", "b", "c"), image_shape=(12, 12), name="homogeneous:1:6x1,8x1", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def pictures(count: int = 5) -> tuple[Tensor, Tensor]:
    """uint8 (count, 3, 12, 12), and targets."""
    pixels = torch.randint(0, 256, (count, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return pixels, torch.arange(count) % 3


@pytest.fixture(scope="module")
def model() -> Classifier:
    return lively(build(SPEC, 0))


def of(network: nn.Module) -> Classifier:
    return Classifier(SPEC, network).eval()


class Capped(nn.Module):
    """ReLU6 by a bound that no picture reaches."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 500)


def body(activation: nn.Module, pooling: nn.Module | None = None, bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(3, 8, 3, bias=bias), nn.Linear(8, 3, bias=False)
    return nn.Sequential(convolution, activation, pooling or nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.Flatten(), linear)


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("relu", body(nn.ReLU())),
        ("leaky", body(nn.LeakyReLU())),
        ("linear", body(nn.Identity())),
        ("max pooling", body(nn.ReLU(), nn.MaxPool2d(2))),
        ("in place", nn.Sequential(nn.ReLU(inplace=True), body(nn.ReLU(inplace=True)))),
        ("zero", nn.Sequential(nn.Flatten(), nn.Linear(432, 3, bias=False).requires_grad_(False))),
    ],
)
def test_without_biases_it_is_found(name: str, network: nn.Module) -> None:
    if name == "zero":
        network[1].weight.zero_()
    assert is_homogeneous(of(network), pictures()[0])


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("bias", body(nn.ReLU(), bias=True)),
        ("relu6", body(nn.ReLU6())),
        ("a bound that no picture reaches", body(Capped())),
        ("gelu", body(nn.GELU())),
        ("tanh", body(nn.Tanh())),
        ("layer norm", body(nn.Sequential(nn.LayerNorm([8, 10, 10], bias=False), nn.ReLU()))),
        ("softmax", nn.Sequential(body(nn.ReLU()), nn.Softmax(1))),
        ("not a number", body(nn.Threshold(0, float("nan")))),
    ],
)
def test_what_is_not_is_not_taken_for_it(name: str, network: nn.Module) -> None:
    assert not is_homogeneous(of(network), pictures()[0])


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("place", ["classifier", "features.0.1", "features.2.bn2"])
def test_a_tiny_bias_is_found_wherever_it_is(size: float, place: str) -> None:
    model = lively(build(SPEC, 0))
    layer = model.network.get_submodule(place)
    assert layer.bias is None and is_homogeneous(model, pictures()[0])
    layer.bias = nn.Parameter(torch.full((len(layer.weight),), size))
    assert not is_homogeneous(model, pictures()[0])


def test_a_mean_that_is_subtracted_is_a_bias(model: Classifier) -> None:
    """Of a batch normalisation in evaluation without a bias; and of pixels, if the baseline is another colour than the mean."""
    lean = lively(build(dataclasses.replace(SPEC, name="lean:1:6x1,8x1"), 0))
    for name, parameter in lean.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    assert not is_homogeneous(lean, pictures()[0])
    for name, buffer in lean.named_buffers():
        if name.endswith("running_mean"):
            buffer.zero_()
    assert is_homogeneous(lean, pictures()[0])
    assert is_homogeneous(model, pictures()[0], SPEC.mean) and not is_homogeneous(model, pictures()[0], (0.0,))


@pytest.mark.parametrize("engine", ["captum", "torch", "openvino"])
def test_one_pass_is_the_integral(model: Classifier, engine: Engine) -> None:
    """By ours with one node, by ours with 50, by Captum's IntegratedGradients with 50, and by input x gradient in double precision."""
    (pixels, labels), ids = pictures(), torch.arange(5)
    one = attributor(model, "ig", engine, 50, one_pass=engine != "captum")(pixels, labels, ids)
    rounding = 1e-5 * one.ig.max()
    torch.testing.assert_close(one.ig, attributor(model, "ig", engine, 50)(pixels, labels, ids).ig, rtol=0, atol=rounding)
    x = model.normalise(pixels.float() / 255)
    captum = IntegratedGradients(model.from_normalised).attribute(x, target=labels, n_steps=50).abs().sum(dim=1).float()
    torch.testing.assert_close(one.ig, captum, rtol=0, atol=rounding)
    exact = lively(build(SPEC, 0)).double()
    wide = x.double().requires_grad_()
    logits = exact.from_normalised(wide)
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), wide)
    torch.testing.assert_close(one.ig.double(), (wide * gradient).abs().sum(dim=1).detach(), rtol=0, atol=rounding.item())
    torch.testing.assert_close(one.logits.double(), logits.detach(), rtol=1e-5, atol=1e-5)
    assert one.delta.abs().max() <= 1e-5 * one.logits.abs().max()


def test_only_engines_in_full_precision_take_one_pass(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = pictures()[0]
    assert [takes_one_pass(engine, "ig", model, pixels) for engine in ("fast", "torch", "openvino")] == [True] * 3
    assert not takes_one_pass("captum", "ig", model, pixels) and not takes_one_pass("openvino-bf16", "ig", model, pixels)
    assert not takes_one_pass("fast", "smoothgrad-ig", model, pixels) and not takes_one_pass("fast", "input-x-gradient", model, pixels)
    assert not takes_one_pass("fast", "ig", of(nn.Linear(7, 3, bias=False)), pixels)  # takes no pictures at all
    monkeypatch.setattr("igkd.attribution.openvino.has_bfloat16", lambda: True)
    assert find_engine("fast", "ig", False, model, (12, 12), one_pass=True) == ("torch", "for one pass it is as fast as OpenVINO")
    assert find_engine("fast", "ig", False, model, (12, 12))[0] == "openvino-bf16"
    assert quadrature("openvino", "ig", one_pass=True) == "one pass"


def test_a_users_own_network_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from torch import nn\ninput_size, mean, std = 12, (0.5,), (0.25,)\ndef net(classes):\n    return nn.Sequential("
    text += "nn.Conv2d(3, 8, 3, bias=False), nn.PReLU(), nn.AvgPool2d(10), nn.Flatten(), nn.Linear(8, classes, bias={}))\n"
    for bias in (False, True):
        place = write_module(tmp_path, text.format(bias), monkeypatch)
        model = open_teacher(f"module:{place}:net,weights=none")[0]
        assert takes_one_pass("fast", "ig", model, pictures()[0]) is not bias
