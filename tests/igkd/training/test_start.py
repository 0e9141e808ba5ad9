"""Students and teachers that are other people's networks, and start from their weights."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.config.teacher import TeacherConfig
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.initial import init_hash, initial
from igkd.networks.network import NetworkSpec, build
from igkd.store import Store
from igkd.training.identity import decided, fingerprints
from igkd.training.optimizer import make_optimizer, set_training
from igkd.training.run import Trainer
from igkd.training.student_data import distill_task, for_workers, open_store
from igkd.training.teacher_data import check_teacher, teacher_task
from tests.helpers.modules import write_module
from tests.helpers.stores import make_store
from tests.helpers.training import random_samples, recipe, run

SMALL = "timm:mobilenetv3_small_050"
IMAGES = "shapes:train=60,test=20"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The store of a torchvision network, for a student of timm's."""
    root = tmp_path_factory.mktemp("store")
    classes = tuple(open_images(IMAGES).classes)
    model = build(NetworkSpec(name="torchvision:squeezenet1_1", classes=classes, image_shape=(32, 32)), 0)
    checkpoint.save(model.eval(), root / "teacher", {})
    make_store(
        PrecomputeConfig(images=IMAGES, teacher=str(root / "teacher"), store=str(root / "store"), steps=1, student=SMALL, engine="torch")
    )
    yield str(root / "store")


def configure(store: str, **changes: Any) -> DistillConfig:
    usual = {"arm": "kd+ig+at", "student": SMALL, "epochs": 1, "batch_size": 20, "precision": "float32"}
    return DistillConfig(store=store, out="o", **usual | changes)


@pytest.fixture
def weights(tmp_path: Path) -> tuple[str, nn.Module]:
    torch.manual_seed(7)
    network = timm.create_model("mobilenetv3_small_050").eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pth")
    return str(tmp_path / "w.pth"), network


def test_attention_goes_from_any_network_to_any_other(store: str) -> None:
    plan, config = Store.open(store).plan, configure(store, student=SMALL)
    open_store(config)
    task = distill_task(config)
    assert plan.attention_layer is not None and task.objective.tap is not None and task.objective.teacher_tap == plan.attention_layer
    _, seen = build(task.spec, 0).eval()(torch.zeros(1, 3, 32, 32), (task.objective.tap,))
    # At 32 pixels the two have no size in common; the loss then interpolates.
    assert plan.attention_shape == (3, 3) and seen[task.objective.tap].shape[2:] == (2, 2)
    (history,) = list(Trainer(task, lambda network: network, progress=lambda line: None).epochs())
    assert torch.isfinite(torch.tensor(history[0]["train_loss"]))


def test_taps_that_the_user_chose(store: str) -> None:
    layer = Store.open(store).plan.attention_layer
    assert layer is not None
    task = distill_task(configure(store, taps=("blocks.0", layer)))
    assert task.objective.tap == "blocks.0"
    for taps, words in (
        (("blocks.99", layer), "has no layer 'blocks.99' with feature maps"),
        (("blocks.0", "features.0"), f"holds attention of layer {layer}, .* needs features.0; make .* --taps blocks.0 features.0"),
    ):
        with pytest.raises(UserError, match=words):
            open_store(configure(store, taps=taps))


def test_a_student_starts_from_a_file_with_a_new_head(store: str, weights: tuple[str, nn.Module]) -> None:
    path, network = weights
    config = configure(store, init=path)
    start = initial(SMALL, 10, path)
    assert start.line == f"{SMALL} starts from {path}, with a new last layer for 10 classes instead of 1000"
    trainer = Trainer(distill_task(config), lambda network: network, progress=lambda line: None)
    state, fresh = trainer.network.network.state_dict(), build(trainer.task.spec, config.seed).network.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(state[name], fresh[name] if name.startswith("classifier.") else value)
    assert trainer.task.spec.mean == (0.485, 0.456, 0.406)
    found = fingerprints(config)
    assert found["init_sha256"] == init_hash(path) and "init_sha256" not in fingerprints(configure(store))
    assert for_workers(dataclasses.replace(config, init="w.pth")).init == str(Path("w.pth").resolve())
    assert decided(config, Store.open(store)).student == SMALL


def test_a_student_starts_from_a_checkpoint_of_its_classes(store: str, tmp_path: Path) -> None:
    spec = dataclasses.replace(distill_task(configure(store, arm="kd")).spec, mean=(0.1, 0.2, 0.3))
    checkpoint.save(build(spec, 5), tmp_path / "c", {})
    task = distill_task(configure(store, arm="kd", init=str(tmp_path / "c")))
    assert task.initial is not None and torch.equal(task.initial["classifier.bias"], build(spec, 5).network.state_dict()["classifier.bias"])
    assert task.spec.mean == (0.1, 0.2, 0.3) and initial(SMALL, 10, str(tmp_path / "c")).line.endswith(f"starts from {tmp_path}/c")


def test_starts_that_are_of_no_use(store: str, weights: tuple[str, nn.Module]) -> None:
    for changes, words in (
        ({"init": "nowhere"}, "there is no file of weights nowhere"),
        ({"init": weights[0], "student": "timm:resnet10t"}, "w.pth does not fit timm:resnet10t: .* are missing"),
        ({"init": "default", "student": "lean:2:8x1"}, "lean:2:8x1 has no default weights: --init takes a file"),
    ):
        with pytest.raises(UserError, match=words):
            distill_task(configure(store, **changes))
    with pytest.raises(UserError, match="--init nowhere: there is no such file"):
        init_hash("nowhere")


USELESS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, classes, kind):
        super().__init__()
        self.kind, self.head = kind, nn.Sequential(nn.Conv2d(1 if kind == "grey" else 3, classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    def forward(self, x):
        out = self.head(x)
        return (out, out) if self.training and self.kind == "two" else out
def grey(classes): return Net(classes, "grey")
def two(classes): return Net(classes, "two")
def few(classes): return Net(3, "few")
"""


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ("module:{}:grey", "takes pictures of 1 channel"),
        ("module:{}:two", "in training, gives a tuple where logits, a tensor"),
        ("module:{}:few", "gives logits of 3 classes, and there are 10"),
        ("torchvision:inception_v3", "cannot take pictures of 32x32 pixels|in training"),
        ("torchvision:alexnet", "cannot take pictures of 32x32 pixels .*--image-size"),
        ("airbench:8,8,8,8,8", "airbench:8,8,8,8,8 cannot take pictures of 32x32 pixels .*--image-size"),
    ],
)
def test_students_that_are_of_no_use(store: str, student: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_module(tmp_path, USELESS, monkeypatch, ())
    monkeypatch.setenv("IGKD_MODULES", f"{place}:grey,{place}:two,{place}:few")
    with pytest.raises(UserError, match=words):
        open_store(configure(store, arm="kd", student=student.format(place)))
    with pytest.raises(UserError, match=words):
        check_teacher(TeacherConfig(images=IMAGES, out="o", network=student.format(place), batch_size=20))


def test_pictures_may_be_too_small_at_low_resolution_alone(store: str) -> None:
    """Four blocks make one of 16 x 16 positions, and none of 12 x 12."""
    network, words = "airbench:8,8,8,8", r"cannot take pictures scaled to 13x13 pixels .*leave out --low-resolution-epochs"
    teacher = TeacherConfig(images="shapes:train=40,test=5", image_size=17, out="o", network=network, batch_size=20, epochs=2)
    check_teacher(teacher)
    with pytest.raises(UserError, match=words):
        check_teacher(dataclasses.replace(teacher, low_resolution_epochs=1))


ONCE = """
import torch
from torch import nn
class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x / 2
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient): return gradient / 2
class Once(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    def forward(self, x): return Halved.apply(self.head(x).square())
def once(classes): return Once(classes)
"""


def test_a_student_without_second_derivative_cannot_learn_maps(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_module(tmp_path, ONCE, monkeypatch, ())
    monkeypatch.setenv("IGKD_MODULES", f"{place}:once")
    open_store(configure(store, arm="kd", student=f"module:{place}:once"))
    with pytest.raises(UserError, match="cannot be differentiated again .*choose an arm without map"):
        open_store(configure(store, arm="map+kd", student=f"module:{place}:once"))
    open_store(configure(store, arm="map+kd", student="torchvision:resnet18"))


def test_fine_tuning_prepares_pictures_as_the_weights_were(weights: tuple[str, nn.Module]) -> None:
    settings: dict[str, Any] = {"images": IMAGES, "out": "o", "network": SMALL, "init": weights[0], "batch_size": 20}
    task = teacher_task(TeacherConfig(**settings, image_size=48))
    assert task.spec.image_shape == (48, 48) and task.spec.mean == (0.485, 0.456, 0.406) and task.spec.short_side == 0
    whole = teacher_task(TeacherConfig(**settings | {"images": "shapes:train=20,test=10"}))
    assert whole.spec.image_shape == (224, 224) and whole.spec.short_side == 256
    assert task.initial is not None and "classifier.weight" not in task.initial
    with pytest.raises(UserError, match="--freeze-norms keeps the statistics of trained weights"):
        TeacherConfig(**settings | {"init": None}, freeze_norms=True)


def test_a_head_with_its_own_learning_rate_and_frozen_statistics() -> None:
    model = build(NetworkSpec(name=SMALL, classes=tuple("abc"), image_shape=(32, 32)), 0)
    how = recipe(head_learning_rate=1.0, freeze_norms=True, schedule="constant", learning_rate=0.1)
    optimizer = make_optimizer(model, how)
    body, last = optimizer.param_groups
    assert {id(p) for p in last["params"]} == {id(p) for p in model.network.classifier.parameters()} and last["factor"] == 10
    assert len(body["params"]) + 2 == len(list(model.parameters()))
    set_training(model, how)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert model.training and all(torch.equal(v, after[k]) for k, v in before.items() if "running" in k or "num_batches" in k)
    assert not torch.equal(before["network.conv_stem.weight"], after["network.conv_stem.weight"])
    assert len(make_optimizer(model, recipe()).param_groups) == 1


def test_the_steps_of_the_head_are_so_many_times_as_long() -> None:
    def trained(factor: float) -> dict[str, torch.Tensor]:
        model = build(NetworkSpec(name="lean:2:8x1", classes=tuple("abc"), image_shape=(16, 16)), 0)
        start = {k: v.clone() for k, v in model.state_dict().items()}
        how = recipe(head_learning_rate=factor * 1e-3, epochs=1, batch_size=8, schedule="constant", learning_rate=1e-3, weight_decay=0.0)
        run(model, random_samples(8), how)
        return {k: v - start[k] for k, v in model.state_dict().items()}

    one, ten = trained(1.0), trained(10.0)
    torch.testing.assert_close(ten["network.classifier.weight"], 10 * one["network.classifier.weight"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ten["network.features.0.0.weight"], one["network.features.0.0.weight"])
