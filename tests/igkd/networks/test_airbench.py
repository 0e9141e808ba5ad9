"""Networks like airbench's: their name, their first filters, their shapes, and that other rooms take them."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from igkd.base.errors import UserError
from igkd.deployment import formats
from igkd.deployment.export import as_decoded
from igkd.evaluation.evaluate import predict
from igkd.images import drawn_shapes
from igkd.images.open import open_images
from igkd.images.samples import load_samples
from igkd.networks import airbench
from igkd.networks.airbench import MAX_WIDTH, canonical, first_filters
from igkd.networks.checkpoint import load, save
from igkd.networks.network import Deployed, NetworkSpec, build, multiply_adds, parameter_count
from tests.helpers.networks import hooked_multiply_adds, lively, same_state, settled

SPEC = NetworkSpec(classes=drawn_shapes.CLASSES, image_shape=(32, 32), name="airbench:8,12,16", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "32,",
        ",32",
        "032",
        "0",
        "-3",
        "32, 64",
        "1025",
        "9" * 40,
        "8,8,8,8,8,8,8",
        "٣",
        "8x1",
        "8;import os",
        "1:8",
        "3:8",
        "2:",
        "2:2:8",
    ],
)
def test_what_names_none_is_refused_in_a_short_sentence(text: str) -> None:
    with pytest.raises(UserError, match="airbench.*names no network; one is airbench:32,128,128") as caught:
        canonical(text)
    assert len(str(caught.value)) < 350


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_an_architecture_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        assert canonical(text) == text and max(map(int, text.removeprefix("2:").split(","))) <= MAX_WIDTH


def test_the_first_filters_are_a_basis_and_its_negative() -> None:
    flat = first_filters().flatten(1).double()
    assert flat.shape == (24, 12) and torch.equal(flat[:12], -flat[12:])
    torch.testing.assert_close(flat[:12] @ flat[:12].T, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(flat[0], torch.full((12,), 12**-0.5, dtype=torch.float64), rtol=0, atol=1e-6)  # brightness


def test_the_first_filters_separate_what_pictures_have_in_common() -> None:
    """Pixels of a patch of 2x2 rise and fall together; the outputs of the filters do not."""
    pictures = np.stack([drawn_shapes.draw(3, "train", i)[0] for i in range(60)]).transpose(0, 3, 1, 2)
    x = torch.from_numpy(pictures).double() / 255
    patches = nn.functional.unfold(x, 2).transpose(1, 2).reshape(-1, 12)
    outputs = nn.functional.conv2d(x, first_filters()[:12].double()).transpose(0, 1).flatten(1).T

    def together(values: torch.Tensor) -> float:
        return float((torch.corrcoef(values.T) - torch.eye(12)).abs().mean())

    assert together(outputs) < together(patches) / 3 and together(patches) > 0.3


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.integers(1, 4),
    st.tuples(st.integers(17, 40), st.integers(17, 40)),
    st.sampled_from((1, 2)),
)
def test_shapes_and_sizes(widths: list[int], classes: int, shape: tuple[int, int], stem: int) -> None:
    name = f"airbench:{'2:' * (stem == 2)}{','.join(map(str, widths))}"
    model = build(NetworkSpec(classes=tuple("abcd"[:classes]), image_shape=shape, name=name), 0).eval()
    sides, parameters, before = tuple((side - 2) // stem + 1 for side in shape), 24 * 12 + 2 * 24, 24
    for width in widths:
        parameters, before = parameters + 9 * width * (before + width) + 4 * width, width
    assert parameter_count(model) == parameters + before * classes + classes
    assert multiply_adds(model) == hooked_multiply_adds(model)
    with torch.no_grad():
        logits, outputs = model(torch.rand(2, 3, *shape), tuple(f"features.{i}" for i in range(len(widths) + 1)))
    assert logits.shape == (2, classes)
    for i, width in enumerate([24, *widths]):
        assert outputs[f"features.{i}"].shape == (2, width, *(side // 2**i for side in sides))


@pytest.mark.parametrize(("name", "stride"), [("airbench:5", 1), ("airbench:2:5", 2)])
def test_the_network_by_hand(name: str, stride: int) -> None:
    """Convolution, largest of four, normalisation, ReLU, convolution, normalisation, ReLU, largest of all; in torch's functions."""
    height, width = 1 + 8 * stride, 1 + 10 * stride
    model = lively(build(NetworkSpec(classes=("a", "b"), image_shape=(height, width), name=name), 0)).double()
    x, (stem, block, _) = torch.randn(3, 3, height, width, dtype=torch.float64), model.network.features

    def normalised(y: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return ((y - norm.running_mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)).clamp(min=0)

    with torch.no_grad():
        y = normalised(nn.functional.conv2d(x, stem[0].weight, stride=stride), stem[1])
        y = nn.functional.conv2d(y, block[0].weight, padding=1)[:, :, :8, :10]
        y = normalised(y.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5)), block[2])
        y = normalised(nn.functional.conv2d(y, block[4].weight, padding=1), block[5])
        expected = nn.functional.linear(y.flatten(2).amax(2), model.network.classifier.weight, model.network.classifier.bias)
        torch.testing.assert_close(model.from_normalised(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", [31, 32, 33])
def test_every_pixel_is_seen(side: int) -> None:
    """Also those in rows and columns that a pooling leaves over, through the padding of the convolution before it."""
    torch.manual_seed(0)
    network, x = airbench.features(airbench.Airbench(1, (8, 12, 16)))[:-1].eval(), torch.rand(32, 3, side, side, requires_grad=True)
    network(x).sum().backward()
    assert x.grad is not None and (x.grad != 0).any(0).all()


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path) -> None:
    model = lively(build(SPEC, 0))
    save(model, tmp_path, {})
    back = load(tmp_path)
    assert back.spec == SPEC and same_state(model, back)
    assert same_state(build(SPEC, 3), build(SPEC, 3)) and not same_state(build(SPEC, 3), build(SPEC, 4))


def test_its_files_give_what_the_checkpoint_gives() -> None:
    model = settled(build(SPEC, 1))
    with torch.no_grad():
        model.network.classifier.weight.mul_(50)
    samples = load_samples(open_images("shapes:train=200"), "train", np.arange(200))[0]
    pixels, expected = as_decoded(samples), predict(model, samples).numpy()
    network = formats.to_onnx(model)
    np.testing.assert_allclose(formats.run_onnx(network, pixels), expected, atol=1e-5 * np.abs(expected).max())
    exported = torch.export.export(Deployed(model), (torch.from_numpy(pixels[:8]),))
    with torch.no_grad():
        answers = exported.module()(torch.from_numpy(pixels[:8])).numpy()
    np.testing.assert_allclose(answers, expected[:8], atol=1e-5 * np.abs(expected).max())
    int8 = formats.run_onnx(formats.to_int8(network, pixels[:64]), pixels)
    assert (int8.argmax(1) == expected.argmax(1)).mean() > 0.9
