import copy

import pytest
import torch
from torch import nn

from igkd.networks.layers import ClampedReLU6, Shortcut, StridedDepthwise, avoid_slow_kernels, avoid_wrong_kernels, plain
from igkd.networks.network import NetworkSpec, build

TRIED = (2, 15)
"""The newest torch with which the plain layers were tried."""


@pytest.mark.parametrize("side", [7, 8])
def test_a_shortcut_is_the_strided_convolution(side: int) -> None:
    torch.manual_seed(0)
    shortcut, plain = Shortcut(5, 6, 1, 2), nn.Conv2d(5, 6, 1, 2)
    plain.load_state_dict(shortcut.state_dict())
    ours = torch.randn(3, 5, side, side, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    given, expected = shortcut(ours), plain(theirs)
    torch.testing.assert_close(given, expected)
    given.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(shortcut.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)


def test_only_strided_convolutions_of_one_pixel_become_shortcuts_and_they_come_back() -> None:
    layers = [nn.Conv2d(8, 8, 1, 2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 1, 2, 1), nn.Conv2d(8, 8, 1, 2, groups=2)]
    network = avoid_wrong_kernels(nn.Sequential(*layers))
    assert [type(layer) for layer in network] == [Shortcut, *[nn.Conv2d] * 4]
    assert [type(layer) for layer in plain(network)] == [nn.Conv2d] * 5


@pytest.mark.parametrize(("side", "kernel"), [(8, 3), (9, 3), (8, 5)])
def test_a_strided_depthwise_layer_is_the_plain_one_within_the_rounding_of_bfloat16(side: int, kernel: int) -> None:
    """Against double precision, both: where they differ, ours has to be the one that is nearer."""
    torch.manual_seed(0)
    plain = nn.Conv2d(12, 12, kernel, 2, kernel // 2, groups=12, bias=False)
    ours = avoid_slow_kernels(nn.Sequential(copy.deepcopy(plain)))[0]
    assert type(ours) is StridedDepthwise and type(plain) is nn.Conv2d
    x = torch.randn(6, 12, side, side)

    def gradients(layer: nn.Module, x: torch.Tensor, rounded: bool) -> tuple[torch.Tensor, ...]:
        x = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            y = layer(x)
        assert y.dtype == (torch.bfloat16 if rounded else x.dtype)
        (weight,) = layer.parameters()
        return (y.detach().double(), *(g.double() for g in torch.autograd.grad(y.double().square().sum(), [x, weight])))

    exact = gradients(copy.deepcopy(plain).double(), x.double(), False)
    for name, mine, theirs, truth in zip(
        ("output", "input", "weight"), gradients(ours, x, True), gradients(plain, x, True), exact, strict=True
    ):
        error, usual = (mine - truth).abs().max(), (theirs - truth).abs().max()
        assert error <= 2**-7 * truth.abs().max() and error <= 1.5 * usual, name
    for mine, theirs in zip(gradients(ours, x, False), gradients(plain, x, False), strict=True):
        assert torch.equal(mine, theirs), "in float32 it is the plain layer"


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clamped_relu6_is_the_plain_one_to_the_bit(dtype: torch.dtype, inplace: bool) -> None:
    """Also at the corners, beyond them, and where a network has diverged; and differentiated twice."""
    corners = torch.tensor([0.0, -0.0, 6.0, 1e-30, -1e-30, torch.inf, -torch.inf, torch.nan])
    values = torch.cat([corners, torch.linspace(-1, 7, 2000)]).to(dtype)
    weights = torch.randn(len(values), generator=torch.Generator().manual_seed(0)).to(dtype)
    found = []
    for layer in (avoid_slow_kernels(nn.Sequential(nn.ReLU6()))[0], nn.ReLU6(inplace)):
        x = values.clone().requires_grad_()
        y = layer(x * 1)
        (once,) = torch.autograd.grad((y.square() * weights).sum(), x, create_graph=True)
        (twice,) = torch.autograd.grad((once * weights).sum(), x)
        found.append((y, once, twice))
        assert type(layer) is (nn.ReLU6 if len(found) == 2 else ClampedReLU6)
    for name, mine, theirs in zip(("output", "gradient", "second"), *found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize(("name", "relu6"), [("mobilenet:width=0.35", ClampedReLU6), ("torchvision:mobilenet_v2", nn.ReLU6)])
def test_networks_of_any_family_have_them(name: str, relu6: type[nn.Module]) -> None:
    """But a ReLU6 that works in place stays: a network may lean on it."""
    model = build(NetworkSpec(classes=("a", "b"), image_shape=(32, 32), name=name), 0)
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1 and m.stride == (2, 2)]
    assert len(strided) >= 3 and all(type(m) is StridedDepthwise for m in strided)
    others = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m not in strided]
    assert all(type(m) is nn.Conv2d for m in others)
    activations = [m for m in model.modules() if isinstance(m, nn.ReLU6)]
    assert len(activations) > 30 and all(type(m) is relu6 for m in activations)
    assert all(type(m) is nn.ReLU6 for m in plain(model).modules() if isinstance(m, nn.ReLU6))


def test_files_do_not_know_it() -> None:
    """Names in checkpoints, and operations in what is exported, are those of the plain layer."""
    theirs = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.ReLU6()).eval()
    ours = avoid_slow_kernels(copy.deepcopy(theirs))
    assert [type(layer) for layer in ours] == [StridedDepthwise, ClampedReLU6] and list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        exported = [torch.export.export(network, (torch.rand(2, 4, 8, 8),)) for network in (ours, theirs)]
    assert [str(n.target) for n in exported[0].graph.nodes] == [str(n.target) for n in exported[1].graph.nodes]


def test_it_is_time_to_try_the_plain_layers_again() -> None:
    """Whether torch still needs StridedDepthwise is a matter of time: `python -m bench.convolutions` measures it."""
    installed = tuple(int(n) for n in torch.__version__.split(".")[:2])
    assert installed <= TRIED, (
        f"torch {torch.__version__} is newer than any that StridedDepthwise was tried with: run python -m bench.convolutions on a "
        "processor with bfloat16, and delete the layer if it is no longer needed; else set TRIED"
    )
