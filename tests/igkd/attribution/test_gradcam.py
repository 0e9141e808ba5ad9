"""Grad-CAM against Captum, by hand, and through a store into what a student sees."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from igkd.attribution.gradcam import enlarged, grad_cam
from igkd.attribution.overlay import overlay, sharpen
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import Objective
from igkd.config.precompute import PrecomputeConfig
from igkd.images import drawn_shapes
from igkd.images.views import move
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, NetworkSpec
from igkd.networks.open import open_teacher
from igkd.store import Store, describe, verify
from igkd.store.kept_layers import kept_gradcam
from igkd.training.augment import augment, draw, map_targets
from igkd.training.student_data import open_store
from igkd.training.student_rows import training_rows
from tests.helpers.stores import make_store
from tests.helpers.training import recipe


@pytest.mark.parametrize("layer", ["features.4", "features"])
def test_it_is_captums(model: Classifier, batch: tuple[Tensor, Tensor], layer: str) -> None:
    pixels, labels = batch
    before = pixels.clone()
    found = grad_cam(model, pixels, labels, layer)
    expected = LayerGradCam(model, model.network.get_submodule(layer)).attribute(pixels, labels, relu_attributions=True)[:, 0].detach()
    assert found.dtype == torch.float32 and not found.requires_grad and torch.equal(pixels, before) and not pixels.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (found >= 0).all() and expected.amax() > 1e-3
    assert not torch.allclose(found, grad_cam(model, pixels, (labels + 1) % 3, layer)), "the label makes no difference"


def test_by_hand(batch: tuple[Tensor, Tensor]) -> None:
    """Two channels, averaged over positions and weighted: a_k is the channel's weight over the number of positions."""

    class Two(Classifier):
        def __init__(self) -> None:
            super().__init__(NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16)), nn.Sequential(nn.Conv2d(3, 2, 1)))

        def from_normalised(self, x: Tensor) -> Tensor:
            return self.network(x).mean(dim=(2, 3)) @ torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, -1.0]])

    network, (pixels, labels) = Two().eval(), batch
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    features = network.network(pixels)
    weights = torch.tensor([[1.0, 3.0], [-2.0, 1.0], [0.5, -1.0]])[labels] / 256
    expected = (weights[:, :, None, None] * features).sum(dim=1).clamp_min(0)
    torch.testing.assert_close(grad_cam(network, pixels, labels, "0"), expected, rtol=1e-5, atol=1e-8)


@pytest.fixture(scope="module")
def store(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 images with masks, maps and Grad-CAMs."""
    uri = str(tmp_path_factory.mktemp("gradcam") / "store")
    config = PrecomputeConfig(images="shapes:train=24,test=5", teacher=teacher, store=uri, steps=1, method="input-x-gradient", gradcam=True)
    make_store(config)
    return uri


def test_a_store_has_that_of_each_image(store: str, teacher: str) -> None:
    opened, model = Store.open(store), checkpoint.load(teacher)
    assert (opened.plan.gradcam_layer, opened.plan.gradcam_shape) == ("features", (4, 4)) and verify(store) == [] and describe(store)
    stored = opened.column("gradcam")
    assert stored.shape == (24, 4, 4) and stored.dtype == np.float16
    for row in (0, 7, 23):
        pixels = torch.from_numpy(drawn_shapes.draw(0, "train", row)[0].copy()).permute(2, 0, 1)[None].float() / 255
        label = torch.tensor([drawn_shapes.label(row)])
        expected = LayerGradCam(model, model.network.features).attribute(pixels, label, relu_attributions=True)[0, 0].detach().numpy()
        np.testing.assert_allclose(stored[row], expected, rtol=2e-3, atol=1e-3 * stored.max())


def test_students_see_it_in_place_of_the_map(store: str) -> None:
    samples, _ = Store.open(store).samples()
    optimisation, objective = recipe(padding=4), Objective(overlay=1.0, explanation="gradcam", map_weight=0.5)
    draws = draw(0, 1, samples.ids, samples.shape, optimisation, objective)
    pixels, clean = augment(samples, draws, optimisation, objective, 0, 1)
    moved = move(enlarged(samples.signals["gradcam"], (32, 32)), draws.view)
    torch.testing.assert_close(pixels, overlay(clean, sharpen(moved, draws.exponent)))
    torch.testing.assert_close(map_targets(samples, draws, optimisation, dataclasses.replace(objective, overlay=0.0), 0, 1), moved)
    other, _ = augment(samples, draws, optimisation, dataclasses.replace(objective, explanation="ig"), 0, 1)
    assert not torch.allclose(pixels, other)


def test_the_control_has_another_images(store: str) -> None:
    opened = Store.open(store)
    own, mixed = (
        training_rows(DistillConfig(store=store, out="o", explanation="gradcam", content=content), opened, 0)
        for content in ("own", "other")
    )
    same = (own.signals["gradcam"] == mixed.signals["gradcam"]).flatten(1).all(1)
    empty = ~own.signals["gradcam"].flatten(1).any(1)  # where nothing speaks for the label; another's may be empty, too
    assert (
        not (same & ~empty).any()
        and int(empty.sum()) < len(own) // 2
        and torch.equal(own.signals["gradcam"].sum(0), mixed.signals["gradcam"].sum(0))
    )


def test_what_cannot_be_is_refused(finished: str, store: str, tmp_path: Path) -> None:
    asked = {"out": "o", "arm": "map", "explanation": "gradcam"}
    with pytest.raises(UserError, match="holds no Grad-CAM, which --explanation gradcam needs; make a store with --gradcam"):
        open_store(DistillConfig(store=finished, **asked))
    open_store(DistillConfig(store=finished, **asked | {"arm": "kd"}))  # an arm that uses no map
    assert open_store(DistillConfig(store=store, **asked)).plan.gradcam_layer == "features"
    assert DistillConfig(store=store, **asked).label == "map, gradcam" and DistillConfig(store=store, **asked | {"arm": "kd"}).label == "kd"


def test_a_teacher_without_feature_maps_has_none(tmp_path: Path) -> None:
    flat = Classifier(NetworkSpec(classes=drawn_shapes.CLASSES, image_shape=(32, 32)), nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))
    config = PrecomputeConfig(images="shapes", teacher="t", store="s", gradcam=True)
    with pytest.raises(UserError, match="has no layer with feature maps of more than one pixel, which Grad-CAM needs: leave --gradcam out"):
        kept_gradcam(config, flat, (32, 32))
    resnet = open_teacher("torchvision:resnet18,weights=none,seed=1")[0]
    assert kept_gradcam(config, resnet, (64, 64)) == ("layer4", (2, 2))
