"""Networks of users that do what few do: layers used twice, constants made once, masks of infinities, parameters in another order."""

import math
from pathlib import Path

import pytest
import torch

from igkd.base.errors import UserError
from igkd.config.optimisation import Objective
from igkd.networks import checkpoint, module
from igkd.networks.network import NetworkSpec, build, values_a_channel
from igkd.networks.open import sha256
from igkd.networks.taps import layers_of
from igkd.networks.trial import check_trainable
from igkd.networks.weights import head, load_into
from igkd.training.optimizer import check_head_rate
from igkd.training.run import Trainer
from igkd.training.task import Task
from tests.helpers.modules import FIXED, NET, write_module
from tests.helpers.training import random_samples, recipe

UNTRAINABLE = {
    "all frozen": ("    return made.requires_grad_(False)", "has no weights to train: all of them are frozen"),
    "expanded buffer": (
        "    made.register_buffer('e', torch.ones(1).expand(3))\n    return made",
        r"cannot be loaded again \(While copying the parameter .*a buffer that expand\(\) made needs \.clone\(\)",
    ),
    "old weight_norm": (
        "    nn.utils.weight_norm(made[0])\n    return made",
        "cannot be copied .*take torch.nn.utils.parametrizations.w",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", UNTRAINABLE)
def test_what_cannot_be_trained_is_a_sentence_before_the_first_epoch(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, words = UNTRAINABLE[kind]
    place = write_module(tmp_path, NET.replace("def net(", "def old(") + f"def net(classes):\n    made = old(classes)\n{text}", monkeypatch)
    with pytest.raises(UserError, match=words):
        check_trainable(NetworkSpec(name=f"module:{place}:net", classes=("a", "b"), image_shape=(16, 16)))


@pytest.mark.parametrize(
    ("signature", "call", "told"),
    [
        ("width=4, classes=10", "old(classes)", 10),
        ("pretrained=False, num_classes=7", "old(num_classes)", 7),
        ("*, n_classes", "old(n_classes)", None),
        ("depth=1, num_labels=5", "old(num_labels)", 5),
        ("flag=True", "old(2)", None),
    ],
)
def test_the_number_of_classes_goes_to_the_parameter_that_is_called_so(
    signature: str, call: str, told: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = NET.replace("def net(", "def old(")
    text += f"def net({signature}):\n    made = {call}\n    made.given = dict(locals())\n    return made\n"
    place = write_module(tmp_path, text, monkeypatch)
    made = module.build(f"{place}:net", 3)
    assert module.outputs(f"{place}:net") == told
    if "flag" not in signature:
        assert made[4].out_features == 3 and made.given.get("width", 4) == 4 and made.given.get("pretrained", False) is False


MEMOISED = (
    NET.replace("def net(", "def old(")
    + """
import functools
@functools.cache
def kernel():
    return torch.ones(3, 1, 3, 3) / 9
class Blurred(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.rest = old(classes)
        self.register_buffer("kernel", kernel(), persistent=False)
    def forward(self, x):
        x.mul_(2)
        return self.rest(F.conv2d(x, self.kernel, padding=1, groups=3))
def net(classes):
    return Blurred(classes)
"""
)


def test_a_constant_that_is_made_once_has_values_whatever_was_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's tensors are asked for their shapes before it is loaded; and a network may change the pixels that it is given."""
    name = f"module:{write_module(tmp_path, MEMOISED, monkeypatch)}:net"
    spec = NetworkSpec(name=name, classes=("a", "b"), image_shape=(16, 16))
    assert head(name) and layers_of(name, 2, (16, 16)) and values_a_channel(spec) == 256
    model = build(spec, 0).eval()
    assert torch.equal(model.network.kernel, torch.full((3, 1, 3, 3), 1 / 9))
    checkpoint.save(model, tmp_path / "c", {})
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = model.network.rest(torch.nn.functional.conv2d(2 * x, torch.full((3, 1, 3, 3), 1 / 9), padding=1, groups=3))
        assert torch.equal(checkpoint.load(tmp_path / "c").network(x.clone()), expected)
    check_trainable(spec)


SHARED = (
    NET.replace("def net(", "def old(")
    + """
class Shared(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, classes)
        block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.a, self.b, self.c = block, block, nn.Conv2d(4, 4, 3, padding=1)
        self.c.weight = block[0].weight
        self.register_buffer("third", torch.tensor([1 / 3], dtype=torch.float64))
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
    def forward(self, x):
        return self.head(self.c(self.b(self.a(self.stem(x)))).mean((2, 3))) + self.mask.exp().sum() * self.third.float()
def net(classes):
    return Shared(classes)
"""
)


def test_layers_that_are_used_twice_are_saved_and_stay_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In checkpoints, in states between epochs, averaged; with a mask of infinities and a constant in double precision."""
    name = f"module:{write_module(tmp_path, SHARED, monkeypatch)}:net"
    spec = NetworkSpec(name=name, classes=("a", "b", "c"), image_shape=(16, 16))
    check_trainable(spec)
    data, how = random_samples(16), recipe(epochs=2, batch_size=8, averaging=0.9)
    task = Task(spec=spec, train=data, count=16, validation=data, optimisation=how, objective=Objective(), seed=0)
    trainer = Trainer(task, lambda network: network, progress=lambda line: None)
    for _ in trainer.epochs():
        trainer.save(tmp_path / "state")
    assert len(trainer.history) == 2 and all(math.isfinite(entry["validation_loss"]) for entry in trainer.history)
    again = Trainer(task, lambda network: network, progress=lambda line: None)
    again.load(tmp_path / "state")
    trainer.write_outcome(tmp_path / "done")
    again.write_outcome(tmp_path / "again")
    for place in ("done", "again"):
        model = checkpoint.load(tmp_path / place / "model")
        assert model.network.a is model.network.b and model.network.c.weight is model.network.a[0].weight
        assert float(model.network.third) == 1 / 3 and torch.equal(model.network.mask, torch.full((4, 4), -torch.inf).triu(1))
    assert (tmp_path / "done/model/model.safetensors").read_bytes() == (tmp_path / "again/model/model.safetensors").read_bytes()
    assert sha256(model) == checkpoint.checkpoint_card(tmp_path / "again" / "model")["sha256"]
    state = {key: value.clone() for key, value in model.network.state_dict().items()}
    load_into(model.network, state, "it")
    for key, value in (("mask", torch.nan), ("head.weight", torch.inf)):
        with pytest.raises(UserError, match=f"{key}.* has values that are no finite numbers"):
            load_into(model.network, state | {key: torch.full_like(state[key], value)}, "it")


def test_a_learning_rate_of_a_last_layer_that_cannot_be_told_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = NetworkSpec(name=f"module:{write_module(tmp_path, FIXED, monkeypatch)}:net", classes=("x", "y"), image_shape=(8, 12))
    check_head_rate(spec, recipe())
    with pytest.raises(UserError, match="--head-learning-rate is for the last layer, and which one that is of module:"):
        check_head_rate(spec, recipe(learning_rate=0.1, head_learning_rate=1.0))
    other = NetworkSpec(name=f"module:{write_module(tmp_path, NET, monkeypatch)}:net", classes=("x", "y"), image_shape=(8, 12))
    check_head_rate(other, recipe(learning_rate=0.1, head_learning_rate=1.0))
