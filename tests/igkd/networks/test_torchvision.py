"""Teachers of torchvision's: fed as their own weights' transforms say."""

from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from torchvision.transforms.functional import center_crop, resize

from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.evaluation.evaluate import matching_samples
from igkd.evaluation.map_samples import read
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build
from igkd.networks.open import open_teacher
from igkd.networks.torchvision import preparation
from igkd.store import Store, compute
from igkd.training.held_out import unseen_by_student
from igkd.training.student_data import distill_task
from tests.helpers.stores import make_store


def spec_of(name: str) -> NetworkSpec:
    return NetworkSpec(name=f"torchvision:{name}", classes=("a", "b"), **preparation(name).complete(name))


@pytest.mark.parametrize(
    ("name", "short_side", "side", "interpolation"),
    [
        ("efficientnet_b7", 600, 600, "bicubic"),
        ("inception_v3", 342, 299, "bilinear"),
        ("vit_h_14", 518, 518, "bicubic"),
        ("resnet50", 232, 224, "bilinear"),
        ("resnet18", 256, 224, "bilinear"),
        ("efficientnet_b1", 255, 240, "bilinear"),
    ],
)
def test_a_networks_own_size_and_scaling(name: str, short_side: int, side: int, interpolation: str) -> None:
    spec = spec_of(name)
    assert (spec.image_shape, spec.short_side, spec.interpolation) == ((side, side), short_side, interpolation)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_network_of_torchvisions_has_a_spec_that_a_checkpoint_may_have(name: str) -> None:
    how = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    spec = spec_of(name)
    assert NetworkSpec.from_json(spec.__dict__) == spec and (list(spec.mean), list(spec.std)) == (how.mean, how.std)


@pytest.mark.parametrize(
    ("name", "side", "mean"), [("efficientnet_b1", 240, 0.485), ("squeezenet1_1", 224, 0.485), ("maxvit_t", 224, 0.485)]
)
def test_random_weights_take_the_same_images_as_the_default_ones(name: str, side: int, mean: float) -> None:
    model, card = open_teacher(f"torchvision:{name},weights=none,seed=1")
    assert model.spec.image_shape == (side, side) and model.spec.mean[0] == mean and card["multiply_adds"] > 1e8


@pytest.mark.parametrize("seed", ["seed=-1", "seed=1e3", "seed=99999999999999999999", "seed=", "seed=\u0663"])
def test_a_seed_that_is_none_is_refused(seed: str) -> None:
    with pytest.raises(
        UserError, match="is no teacher: after the network come at most weights=FILE, weights=default, or weights=none and seed=N"
    ):
        open_teacher(f"torchvision:resnet18,weights=none,{seed}")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Photographs of two classes and many sizes."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i, (height, width) in enumerate([(30, 44), (51, 33), (16, 16), (20, 20), (90, 21), (17, 18)] * 5):
            path = tmp_path / "images" / split / "ab"[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def test_what_a_store_its_students_and_igkd_evaluate_see_is_what_torchvisions_transform_gives(pictures: Path, tmp_path: Path) -> None:
    spec = NetworkSpec(classes=("a", "b"), image_shape=(16, 16), name="mobilenet:width=0.35", short_side=20, interpolation="bilinear")
    checkpoint.save(build(spec, 0), tmp_path / "teacher", {})
    config = PrecomputeConfig(
        images=f"folder:{pictures}",
        teacher=str(tmp_path / "teacher"),
        store=str(tmp_path / "store"),
        steps=2,
        image_size=16,
        engine="captum",
        rows_per_file=30,
    )
    make_store(config)
    source = open_images(config.images)

    def expected(split: str, record: int) -> np.ndarray:
        name = source.files[split][record][0]
        picture = Image.open(pictures / name).convert("RGB")
        return np.asarray(center_crop(resize(picture, [20]), [16]))

    opened = Store.open(config.store)
    assert (opened.plan.short_side, opened.plan.interpolation) == (20, "bilinear")
    samples, _ = opened.samples()
    for i, pixels in zip(samples.ids.tolist(), samples.pixels, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected("train", i))
    student = DistillConfig(store=config.store, out="o", test_images=config.images, arm="kd")
    unseen = unseen_by_student(student, opened)
    assert distill_task(student).spec.scaling == spec.scaling and unseen is not None
    judged, _ = matching_samples(checkpoint.load(config.teacher), "it", source, "test", np.arange(30), "refuse")
    drawn = read(source, "test", np.arange(30), np.arange(2), spec, "refuse")
    assert (16, 16) in drawn.scaled_from, "enlarged, then cropped, as torchvision does"
    for found in (unseen.samples, judged, drawn.samples):
        for i, pixels in zip(found.ids.tolist(), found.pixels, strict=True):
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected("test", i))


def test_images_of_another_size_are_refused_with_the_size_that_is_right(pictures: Path) -> None:
    model, card = open_teacher("torchvision:efficientnet_b1,weights=none,seed=1")
    names = tuple(map(str, range(1000)))
    for given in ({}, {"image_size": 224}):
        source = open_images(f"folder:{pictures}")
        object.__setattr__(source, "classes", names)
        config = PrecomputeConfig(images="photographs", teacher="torchvision:efficientnet_b1", store="s", **given)
        with pytest.raises(UserError, match="the teacher .* was trained on 240x240; --image-size 240 scales and crops the images"):
            compute.make_plan(config, source, model, card["sha256"])
