"""Networks that see their pictures at another resolution: the scaling, their weights, and that other rooms take them."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from igkd.attribution import find_engine
from igkd.base.errors import UserError
from igkd.deployment import formats
from igkd.deployment.export import as_decoded
from igkd.evaluation.evaluate import predict
from igkd.images import drawn_shapes
from igkd.images.open import open_images
from igkd.images.samples import load_samples
from igkd.networks.families import canonical_name, student_name
from igkd.networks.initial import initial, prepared
from igkd.networks.module import CodeRefused
from igkd.networks.network import NetworkSpec, build, multiply_adds, parameter_count
from igkd.networks.open import open_teacher
from igkd.networks.scaled import scaled
from igkd.networks.taps import layers_of
from igkd.networks.trial import check_trainable, check_twice_differentiable
from igkd.networks.weights import fitted
from tests.helpers.attributions import integrated_gradients, least_cosine
from tests.helpers.networks import settled

NAMES = ("scaled:24:mobilenet:cut=5", "scaled:24:lean:1:8x1,12x1", "scaled:40:airbench:8,12", "scaled:24:homogeneous:airbench:8,12")


def spec(name: str, shape: tuple[int, int] = (32, 32)) -> NetworkSpec:
    return NetworkSpec(classes=drawn_shapes.CLASSES, image_shape=shape, name=name, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.mark.parametrize(("shape", "side", "becomes"), [((32, 32), 24, (24, 24)), ((40, 30), 18, (24, 18)), ((9, 12), 30, (30, 40))])
def test_it_scales_as_pillow_does(shape: tuple[int, int], side: int, becomes: tuple[int, int]) -> None:
    """Pillow's bilinear filter is antialiased as well."""
    x = torch.randn(2, 3, *shape)
    expected = [
        [np.asarray(Image.fromarray(c.numpy(), mode="F").resize(becomes[::-1], Image.Resampling.BILINEAR)) for c in one] for one in x
    ]
    np.testing.assert_allclose(scaled(x, side), np.array(expected), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_behind_it_sees_the_scaled_picture(name: str) -> None:
    model = settled(build(spec(name), 0))
    side, bare = int(name.split(":")[1]), build(spec(name.split(":", 2)[2], (int(name.split(":")[1]),) * 2), 1).eval()
    bare.network.load_state_dict(model.network.network.state_dict())
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), bare(scaled(pixels, side)), rtol=1e-4, atol=1e-5)
    assert parameter_count(model) == parameter_count(bare) and multiply_adds(model) == multiply_adds(bare)


@pytest.mark.parametrize("name", NAMES)
def test_students_of_every_family_can_be_trained_by_every_term(name: str) -> None:
    assert canonical_name(name) == name
    check_trainable(spec(student_name(name, "mobilenet", (32, 32))), 0.75)
    check_twice_differentiable(spec(name))
    found = layers_of(name, 4, (32, 32))
    assert found and all(path.startswith("network.") for path in found)


@pytest.mark.parametrize("name", ["scaled:24:lean:1:8x1,12x1", "scaled:24:homogeneous:1:8x1,12x1", "scaled:40:airbench:8,12"])
def test_its_maps_are_captums_and_of_the_size_of_the_picture(name: str) -> None:
    """The engine is the fastest that takes it: OpenVINO has no scaling with antialiasing, and its line says so."""
    model = settled(build(spec(name), 0))
    pixels = torch.from_numpy(np.stack([drawn_shapes.draw(9, "train", i)[0] for i in range(3)]).transpose(0, 3, 1, 2)).float() / 255
    labels = torch.tensor([0, 1, 2])
    engine, why = find_engine("fast", "ig", False, model, (32, 32), False)
    assert engine == "torch" and "openvino" in why
    plain = integrated_gradients(model, pixels, labels, 200)
    fast = integrated_gradients(model, pixels, labels, 200, engine)
    assert fast.ig.shape == (3, 32, 32) and least_cosine(fast.ig, plain.ig) > 0.999


@pytest.mark.parametrize(
    "text", ["", "24", "24:", ":lean", "0:lean:1:8x1", "-1:lean:1:8x1", "10000:lean:1:8x1", "24:scaled:16:lean:1:8x1", "a:b"]
)
def test_what_names_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"names no network; one is scaled:160:timm:mobilenetv3_small_050"):
        canonical_name(f"scaled:{text}")


def test_what_is_wrong_with_the_network_behind_it_is_said_by_its_family() -> None:
    with pytest.raises(UserError, match="'lene' names no network: its family must be one of mobilenet, lean"):
        canonical_name("scaled:24:lene")
    with pytest.raises(UserError, match="torchvision has no classifier 'resnet17'"):
        canonical_name("scaled:24:torchvision:resnet17")
    with pytest.raises(UserError, match=re.escape("scaled:4:torchvision:alexnet cannot take pictures of 32x32 pixels")):
        check_trainable(spec("scaled:4:torchvision:alexnet"))
    with pytest.raises(CodeRefused, match="is code, and only a file names it"):
        build(spec("scaled:24:module:somebody.nets:net"), 0)


def test_weights_of_the_network_behind_it_fit(tmp_path: Path) -> None:
    """A network made for large pictures takes small ones with the weights that it has."""
    torch.manual_seed(3)
    theirs = torchvision.models.squeezenet1_1(num_classes=4).eval()
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, tmp_path / "w.pt")
    name = "scaled:96:torchvision:squeezenet1_1"
    start = initial(name, 4, f"{tmp_path}/w.pt")
    model = build(dataclasses.replace(spec(name), classes=tuple("abcd")), 0)
    model.network.load_state_dict(dict(start.state))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().from_normalised(x), theirs(scaled(x, 96)), rtol=1e-5, atol=1e-5)
    assert initial(name, 7, f"{tmp_path}/w.pt").line.endswith("with a new last layer for 7 classes instead of 4")
    state = {f"network.{key}": value for key, value in theirs.state_dict().items()}
    assert fitted(state, name, 4, "w").state.keys() == state.keys()  # a file of the scaled network itself
    del state["network.classifier.1.bias"]
    with pytest.raises(UserError, match=re.escape("1 tensor(s) are missing (network.classifier.1.bias)")):
        fitted(state, name, 4, "w")


def test_pictures_are_normalised_as_the_network_behind_it_was_trained_and_keep_their_size() -> None:
    how = prepared("scaled:96:torchvision:resnet18", "default")
    assert how.mean == (0.485, 0.456, 0.406) and how.std == (0.229, 0.224, 0.225) and how.image_shape is None
    with pytest.raises(UserError, match=r"does not say how its pictures are prepared: `igkd import scaled.*--image-size N"):
        open_teacher("scaled:96:torchvision:resnet18,weights=none")
    with pytest.raises(UserError, match="scaled:24:lean:1:8x1 has no default weights"):
        initial("scaled:24:lean:1:8x1", 4, "default")


@pytest.mark.parametrize("name", NAMES[1:3])
def test_its_files_give_what_the_checkpoint_gives(name: str) -> None:
    model = settled(build(spec(name), 1))
    with torch.no_grad():
        model.network.network.classifier.weight.mul_(50)
    samples = load_samples(open_images("shapes:train=80"), "train", np.arange(80))[0]
    pixels, expected = as_decoded(samples), predict(model, samples).numpy()
    network = formats.to_onnx(model)
    np.testing.assert_allclose(formats.run_onnx(network, pixels), expected, atol=1e-4 * np.abs(expected).max())
    exported = formats.run_torch_export(formats.archive(formats.to_torch_export(model), {}), pixels)
    np.testing.assert_allclose(exported, expected, atol=1e-4 * np.abs(expected).max())
    int8 = formats.run_onnx(formats.to_int8(network, pixels[:64]), pixels)
    assert (int8.argmax(1) == expected.argmax(1)).mean() > 0.8
