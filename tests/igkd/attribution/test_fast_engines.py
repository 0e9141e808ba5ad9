"""The fast engines' maps are Captum's by the midpoint rule, of networks of many kinds."""

import copy

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from igkd.attribution import attributor, choose_engine, find_engine
from igkd.attribution.base import INPUTS_PER_PASS
from igkd.attribution.openvino import compiled_gradients
from igkd.base.choices import Engine
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.networks.open import open_teacher
from tests.helpers.attributions import STEPS, integrated_gradients, layers, least_cosine
from tests.helpers.networks import lively

LEAST = {"torch": 0.9999, "openvino": 0.9999, "openvino-bf16": 0.9998}
"""Least cosine of a map to Captum's by the same rule; rounding of the backward pass to 8 bits averages out over more steps than these."""


@pytest.mark.parametrize("limit", [1, 3, 16, 512])
def test_torch_engine_is_captums_midpoint_rule_in_double_precision(
    model: Classifier, batch: tuple[Tensor, Tensor], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INPUTS_PER_PASS, "cpu", limit)
    exact = copy.deepcopy(model).double()
    found = integrated_gradients(exact, *batch, STEPS, "torch")
    expected, delta = midpoint(exact, *batch)
    assert expected.amax(dim=(1, 2)).min() > 1e-2
    torch.testing.assert_close(found.ig.double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.delta.double(), delta, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logits.double(), exact(batch[0].double()).detach(), rtol=1e-6, atol=1e-6)


def midpoint(model: Classifier, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Maps and completeness errors by Captum's midpoint rule."""
    x = model.normalise(pixels)
    attributions, delta = IntegratedGradients(model.from_normalised).attribute(
        x, torch.zeros_like(x), labels, n_steps=STEPS, method="riemann_middle", return_convergence_delta=True
    )
    return attributions.abs().sum(dim=1).detach(), delta.detach()


@pytest.mark.parametrize("limit", [1, 16])
@pytest.mark.parametrize("engine", ["torch", "openvino", "openvino-bf16"])
def test_fast_engines_keep_to_captums_midpoint_rule_in_single_precision(
    model: Classifier, batch: tuple[Tensor, Tensor], engine: Engine, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INPUTS_PER_PASS, "cpu", limit)
    found = integrated_gradients(model, *batch, STEPS, engine)
    expected, delta = midpoint(model, *batch)
    assert least_cosine(found.ig, expected) > LEAST[engine]
    torch.testing.assert_close(found.delta, delta, rtol=0.01, atol=0.03 if engine == "openvino-bf16" else 0.01)
    torch.testing.assert_close(found.logits, model(batch[0]).detach(), rtol=1e-4, atol=1e-5)
    for i in range(len(batch[0])):  # a map does not depend on the images it was computed with
        alone = integrated_gradients(model, batch[0][i : i + 1], batch[1][i : i + 1], STEPS, engine)
        assert least_cosine(alone.ig, found.ig[i : i + 1]) > LEAST[engine]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("engine", ["torch", "openvino", "openvino-bf16"])
def test_fast_engines_take_other_networks(name: str, engine: Engine) -> None:
    """Max pooling, a 7x7 kernel of stride 2, sums of branches, an odd image size."""
    teacher, _ = open_teacher(f"torchvision:{name},weights=none,seed=1")
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    pixels, labels = torch.rand(2, 3, 65, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 900])
    with torch.no_grad():
        teacher.train()(pixels)
    found = integrated_gradients(teacher.eval(), pixels, labels, STEPS, engine)
    assert least_cosine(found.ig, midpoint(teacher, pixels, labels)[0]) > LEAST[engine]


@pytest.mark.parametrize("engine", ["torch", "openvino", "openvino-bf16"])
def test_fast_engines_take_a_norm_after_a_pooling(engine: Engine) -> None:
    """It cannot be folded into the convolution before the pooling, so it stays in OpenVINO's graph."""
    teacher = lively(build(NetworkSpec(name="airbench:16,24", classes=("a", "b", "c"), image_shape=(23, 22)), 0))
    pixels, labels = torch.rand(3, 3, 23, 22, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    found = integrated_gradients(teacher, pixels, labels, STEPS, engine)
    assert least_cosine(found.ig, midpoint(teacher, pixels, labels)[0]) > LEAST[engine]


@pytest.mark.parametrize("engine", ["torch", "openvino", "openvino-bf16"])
def test_a_relu6_that_works_in_place_may_be_leant_on(engine: Engine) -> None:
    """What the layer returns is not used: the network goes on with its changed input."""

    class Leaning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
            self.second, self.classifier = nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x))
            self.act(x)
            x = self.second(x)
            self.act(x)
            logits: Tensor = self.classifier(x.mean((2, 3)))
            return logits

    torch.manual_seed(0)
    network = Leaning()
    spec = NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16))
    teacher = Classifier(spec, copy.deepcopy(network))
    pixels, labels = torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 2])
    assert torch.equal(teacher.train()(pixels), network.train()(pixels)), "in training, too"
    teacher = lively(teacher)
    found = integrated_gradients(teacher, pixels, labels, STEPS, engine)
    assert least_cosine(found.ig, midpoint(teacher, pixels, labels)[0]) > LEAST[engine]


@pytest.mark.parametrize(
    "pooling",
    [
        nn.MaxPool2d(2), nn.MaxPool2d([3]), nn.MaxPool2d((3, 2)), nn.MaxPool2d((2, 3), (2, 3)),  # windows side by side
        nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 3), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, 2, dilation=2), nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d((3, 2), (1, 3), (1, 0), (2, 1)), nn.MaxPool2d(2, 1),
        nn.AvgPool2d(2), nn.AvgPool2d(3, 2), nn.AvgPool2d(2, 3), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d((3, 2), (1, 2), (1, 0)),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(3, 2, divisor_override=5),
        nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, 5)), nn.AdaptiveAvgPool2d((11, 13)), nn.AdaptiveAvgPool2d((14, 4)),
    ],
)  # fmt: skip
def test_the_gradient_of_a_pooling_goes_where_torchs_goes(pooling: nn.Module) -> None:
    """Also where several pixels of a window have the largest value: then one of them gets all. And where all are below 0, a border's."""
    x = torch.randint(-3, 0, (4, 3, 11, 13), generator=torch.Generator().manual_seed(1)).float()
    torch.manual_seed(0)
    network, targets = nn.Sequential(pooling, nn.Flatten(), nn.LazyLinear(5)), torch.tensor([0, 4, 2, 2])
    network(x)  # which gives the last layer its size
    wanted = x.clone().requires_grad_()
    network(wanted).gather(1, targets[:, None]).sum().backward()
    found = compiled_gradients(network, 4, tuple(x.shape[1:]))(x, targets)
    assert wanted.grad is not None and found.any()
    torch.testing.assert_close(found, wanted.grad, rtol=1e-6, atol=1e-7)


KINDS = ["plain", "branching", "typed", "twice", "own batch norm", "in place", "dropout", "layer norm", "linear norm", "waves"]


@pytest.mark.parametrize("kind", KINDS)
def test_fast_finds_an_engine_whose_maps_are_captums(kind: str, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model, (pixels, labels) = layers(kind), batch
    before = pixels.clone()
    engine, why = find_engine("fast", "ig", False, model, (16, 16))
    unfolded = {kind: "torch.fx cannot trace it" for kind in ("branching", "own batch norm")}
    unfolded |= {"typed": "it has other logits", "twice": "it has other logits"}
    if kind in unfolded:
        assert engine == "torch" and "its batch norms are not folded" in why and unfolded[kind] in why
    elif kind in ("layer norm", "waves"):
        assert engine == "torch" and why.startswith("openvino") and "fails" in why
    else:
        assert (engine, why) == (choose_engine("fast", "ig", False), "nothing is faster on this machine")
    assert "\n" not in why
    gentle = layers(kind)
    if kind == "in place":
        gentle.body[0] = nn.SiLU()
    expected, delta = midpoint(gentle, pixels, labels)
    for found in (attributor(model, "ig", "torch", STEPS), attributor(model, "ig", engine, STEPS)):
        result = found(pixels, labels, torch.arange(7))
        off = (result.ig - expected).abs().amax(dim=(1, 2)) / expected.amax(dim=(1, 2))
        assert off.max() < (0.02 if found.engine == "openvino-bf16" else 1e-4)  # type: ignore[attr-defined]
        torch.testing.assert_close(result.logits, gentle(pixels).detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result.delta, delta, rtol=1e-2, atol=1e-2)
    reference = attributor(model, "ig", "captum", STEPS)(pixels, labels, torch.arange(7))
    torch.testing.assert_close(reference.logits, gentle(pixels).detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("name", ["densenet121", "convnext_tiny", "swin_t", "shufflenet_v2_x0_5", "regnet_x_400mf", "squeezenet1_1"])
def test_torchvisions_networks_have_captums_maps(name: str) -> None:
    """In double precision: in single, a few have an activation at the corner of a ReLU, which rounding carries across."""
    teacher, _ = open_teacher(f"torchvision:{name},weights=none,seed=1")
    teacher = teacher.double()
    pixels, labels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([7, 900])
    found = attributor(teacher, "ig", "torch", 2)(pixels, labels, torch.arange(2)).ig.double()
    x = teacher.normalise(pixels)
    captum = IntegratedGradients(teacher.from_normalised)
    expected = captum.attribute(x, torch.zeros_like(x), labels, n_steps=2, method="riemann_middle").abs().sum(dim=1).detach()
    assert 0 < (found - expected).abs().max() < 1e-6 * expected.max()


@pytest.mark.slow
def test_fast_takes_a_vision_transformer() -> None:
    teacher, _ = open_teacher("torchvision:vit_b_16,weights=none,seed=1")
    for module in teacher.modules():  # a vision transformer's last layer is 0 at first, and so are its maps
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, 0, 0.05, generator=torch.Generator().manual_seed(0))
    engine, why = find_engine("fast", "ig", False, teacher, (224, 224))
    assert engine == "torch" and "fails" in why
    pixels, labels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)), torch.tensor([7])
    found = attributor(teacher, "ig", engine, STEPS)(pixels, labels, torch.arange(1)).ig
    expected, _ = midpoint(teacher, pixels, labels)
    assert (found - expected).abs().max() < 1e-4 * expected.max()


@pytest.mark.parametrize("engine", ["captum", "torch", "openvino"])
def test_engines_tell_how_many_images_are_done(
    model: Classifier, batch: tuple[Tensor, Tensor], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INPUTS_PER_PASS, "cpu", 4)
    told: list[int] = []
    attributor(model, "ig", engine, STEPS)(*batch, torch.arange(len(batch[0])), told.append)
    assert told == sorted(told) and len(set(told)) > 2 and told[-1] == len(batch[0])
