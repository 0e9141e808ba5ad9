import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from igkd.attribution import Attribution, attributor, choose_engine, find_engine, inputs_per_pass, reference
from igkd.attribution.base import INPUTS_PER_PASS, LEAST_INPUTS_PER_PASS
from igkd.base.choices import Engine, Method
from igkd.base.errors import UserError
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.networks.open import open_teacher
from tests.helpers.networks import lively

STEPS = 8
LEAST = {"torch": 0.9999, "openvino": 0.9999, "openvino-bf16": 0.9998}
"""Least cosine of a map to Captum's by the same rule; rounding of the backward pass to 8 bits averages out over more steps than these."""


@pytest.fixture(params=["captum", "torch", "openvino"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.param
    return found


@pytest.fixture(autouse=True)
def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO fills every pass up to its full size, which seven small images would leave nearly empty."""
    monkeypatch.setitem(INPUTS_PER_PASS, "cpu", 1)


@functools.lru_cache(maxsize=4)
def one_attributor(model: Any, engine: Engine) -> Any:
    """Made once for a network, since OpenVINO takes seconds to compile it; the graph is the same for any number of steps."""
    return attributor(model, "ig", engine, STEPS)


def integrated_gradients(model: nn.Module, pixels: Tensor, labels: Tensor, steps: int, engine: Engine = "captum") -> Attribution:
    attribute = one_attributor(model, engine)
    attribute.steps = steps
    result: Attribution = attribute(pixels, labels, torch.arange(len(pixels)))
    return result


@pytest.fixture(scope="module")
def model() -> Classifier:
    spec = NetworkSpec(
        classes=("a", "b", "c"), image_shape=(16, 16), name="mobilenet:cut=11,width=0.35", mean=(0.5, 0.45, 0.4), std=(0.24, 0.25, 0.26)
    )
    return lively(build(spec, 0))


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    """Seven images of 16x16 and a target for each."""
    return torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 1, 1, 0, 2, 2])


class StandIn(nn.Module):
    """What `integrated_gradients` needs of a network, around a function of (B, 3 * H * W) normalised values to (B, classes)."""

    def __init__(self, weight: Tensor, shape: tuple[int, int], power: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.shape, self.power = shape, power

    def normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - 0.4) / 0.25

    def from_normalised(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.weight.T
        return {"linear": z + 3, "square": z**2 + z - 1, "softplus": nn.functional.softplus(4 * z)}[self.power]


class Positive(StandIn):
    """Nothing is subtracted from the pixels: with weights above 0 all attributions are above 0."""

    def normalise(self, pixels: Tensor) -> Tensor:
        return pixels / 0.25


def stand_in(kind: type[StandIn], power: str, positive: bool = False) -> tuple[StandIn, Tensor, Tensor, Tensor]:
    """A stand-in of 4 classes for 5x4 images, six images, labels, and their normalised values."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 60, generator=generator) / 8
    model = kind(weight.abs() if positive else weight, (5, 4), power)
    pixels = torch.rand(6, 3, 5, 4, generator=generator)
    return model, pixels, torch.tensor([3, 0, 1, 2, 2, 3]), model.normalise(pixels)


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


def least_cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).min())


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


class Layers(Classifier):
    """A classifier of 16x16 pixels and three classes around some layers of eight channels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__(NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), mean=(0.5, 0.45, 0.4), std=(0.24, 0.25, 0.26)))
        self.body, self.head = body, nn.Linear(8, 3)

    def from_normalised(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean(dim=(2, 3)))
        return logits


class Branching(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > -100 else x  # torch.fx raises: it has no value to look at


class Typed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if type(x) is Tensor else 2 * x)  # torch.fx traces the other way, and does not say so


class Twice(nn.Module):
    """One convolution under two batch norms: folding the first into it changes the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.one(self.conv(x))) + torch.tanh(self.two(self.conv(x + 1)))


class OwnBatchNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def layers(kind: str) -> Layers:
    """A network with statistics that folding has to take along; smooth, so that rounding stays rounding."""
    torch.manual_seed(0)
    conv, norm, more = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
    bodies: dict[str, nn.Module] = {
        "plain": nn.Sequential(conv, norm, nn.SiLU()),
        "branching": Branching(conv, norm, nn.SiLU()),
        "typed": Typed(conv, norm, nn.SiLU()),
        "twice": Twice(),
        "own batch norm": nn.Sequential(conv, OwnBatchNorm(8), nn.SiLU()),
        "in place": nn.Sequential(nn.SiLU(inplace=True), conv, norm, nn.SiLU(inplace=True)),
        "dropout": nn.Sequential(conv, norm, nn.SiLU(), nn.Dropout(0.5), StochasticDepth(0.5, "row")),
        "layer norm": nn.Sequential(conv, nn.LayerNorm([8, 14, 14]), nn.SiLU(), more),
        "linear norm": nn.Sequential(conv, norm, nn.GroupNorm(2, 8), nn.GELU()),
    }
    found = Layers(bodies[kind])
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.2, 0.6)
    return found.eval()


KINDS = ["plain", "branching", "typed", "twice", "own batch norm", "in place", "dropout", "layer norm", "linear norm"]


@pytest.mark.parametrize("kind", KINDS)
def test_fast_finds_an_engine_whose_maps_are_captums(kind: str, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model, (pixels, labels) = layers(kind), batch
    before = pixels.clone()
    engine, why = find_engine("fast", "ig", False, model, (16, 16))
    unfolded = {kind: "torch.fx cannot trace it" for kind in ("branching", "own batch norm")}
    unfolded |= {"typed": "it has other logits", "twice": "it has other logits"}
    if kind in unfolded:
        assert engine == "torch" and "its batch norms are not folded" in why and unfolded[kind] in why
    elif "norm" in kind:
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


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("this network has no forward pass\nand says so at length")


def test_an_engine_that_fails_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"--engine openvino cannot compute maps of this network: it fails \(.*; leave --engine out") as one:
        find_engine("openvino", "ig", False, layers("layer norm"), (16, 16))
    with pytest.raises(UserError, match=r"no engine can.*torch fails \(this network has no forward pass\); captum fails") as two:
        find_engine("fast", "ig", False, Layers(Broken()), (16, 16))
    with pytest.raises(UserError, match=r"--engine captum cannot compute maps of this network: it fails \(this network has no") as three:
        find_engine("captum", "ig", False, Layers(Broken()), (16, 16))
    assert not any("\n" in str(caught.value) for caught in (one, two, three))


def test_an_engine_that_gives_other_maps_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igkd.attribution.openvino._convolution_backward", lambda dtype, g, x, *rest: (x * g.mean(), None, None))
    first = choose_engine("fast", "ig", False)
    assert find_engine("fast", "ig", False, layers("plain"), (16, 16)) == ("torch", f"{first} gives other maps than plain differentiation")


def test_an_engine_asked_for_is_tried_and_taken() -> None:
    for engine in ("captum", "torch", "openvino"):
        assert find_engine(engine, "ig", False, layers("plain"), (16, 16)) == (engine, "")
    assert find_engine("fast", "ig", True, layers("plain"), (16, 16)) == ("torch", "there are GPUs")
    assert find_engine("fast", "smoothgrad-ig", False, layers("plain"), (16, 16)) == ("captum", "the one that does smoothgrad-ig")


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


@pytest.mark.parametrize(
    ("asked", "method", "gpu", "expected"),
    [
        ("fast", "ig", True, "torch"),
        ("openvino", "ig", True, "openvino"),
        ("captum", "ig", False, "captum"),
        ("fast", "smoothgrad-ig", False, "captum"),
    ],
)
def test_the_engine_that_fast_stands_for(asked: Any, method: Method, gpu: bool, expected: Engine) -> None:
    assert choose_engine(asked, method, gpu) == expected


@pytest.mark.parametrize(("bfloat16", "expected"), [(True, "openvino-bf16"), (False, "openvino")])
def test_fast_is_in_bfloat16_only_where_the_processor_is(bfloat16: bool, expected: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igkd.attribution.openvino.has_bfloat16", lambda: bfloat16)
    assert choose_engine("fast", "ig", gpu=False) == expected


def test_an_engine_that_cannot_do_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="only --method ig"):
        choose_engine("torch", "smoothgrad-ig", False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_engine("fast", "ig", False) == "torch"
    with pytest.raises(UserError, match=r"pip install 'igkd\[openvino\]'"):
        choose_engine("openvino", "ig", False)


def test_a_network_that_openvino_cannot_differentiate_is_refused() -> None:
    model, pixels, _, _ = stand_in(StandIn, "softplus")
    with pytest.raises(UserError, match="softplus_backward"):
        find_engine("openvino", "ig", False, model, (pixels.shape[2], pixels.shape[3]))
