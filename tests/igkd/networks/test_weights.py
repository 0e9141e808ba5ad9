"""Files of weights that others have saved."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from igkd.base.errors import UserError
from igkd.networks.open import open_teacher
from igkd.networks.weights import fitted, head, read_weights, without_prefixes

NAME = "torchvision:squeezenet1_1"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    torch.manual_seed(3)
    return torchvision.models.squeezenet1_1(num_classes=3).eval()


WAYS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.zeros(1)}}, "param_groups": [{"lr": 0.1}]}},
    "model_ema before model": lambda state: {"model": {k: v + 1 for k, v in state.items()}, "model_ema": state},
    "ema of a wrapper": lambda state: {"ema": {"n_averaged": torch.tensor(5), **{f"module.{k}": v for k, v in state.items()}}},
    "state_dict in model": lambda state: {"model": {"state_dict": state}},
    "data parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "all at once": lambda state: {"state_dict": {f"_orig_mod.module.model.{k}": v for k, v in state.items()}},
    "half": lambda state: {k: v.half().float() for k, v in state.items()},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_teacher_from_a_file_answers_as_the_network_that_was_saved(
    trained: torch.nn.Module, way: str, suffix: str, tmp_path: Path
) -> None:
    torch.save(WAYS[way](trained.state_dict()), tmp_path / f"w{suffix}")
    before = torch.get_rng_state()
    model, card = open_teacher(f"{NAME},weights={tmp_path}/w{suffix}")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.spec.classes == ("0", "1", "2") and model.spec.image_shape == (224, 224) and len(card["sha256"]) == 64
    pixels = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), trained((pixels - mean) / std), atol=2e-3 if way == "half" else 1e-6, rtol=0)


def test_safetensors(trained: torch.nn.Module, tmp_path: Path) -> None:
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "w, weights=1.safetensors")
    model, _ = open_teacher(f"{NAME},weights={tmp_path}/w, weights=1.safetensors")
    assert all(torch.equal(v, model.network.state_dict()[k]) for k, v in trained.state_dict().items())


@given(st.lists(st.sampled_from(["module.", "_orig_mod.", "model."]), max_size=3), st.sampled_from(["conv.weight", "model.weight", "a.b"]))
def test_prefixes_are_removed_only_where_that_makes_names_fit(prefixes: list[str], key: str) -> None:
    wanted = {key: torch.Size([2]), "module.inner.bias": torch.Size([2])}
    state = {"".join(prefixes) + name: torch.zeros(2) for name in wanted}
    assert without_prefixes(state, wanted).keys() == wanted.keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:resnet18", {"fc.weight", "fc.bias"}),
        (NAME, {"classifier.1.weight", "classifier.1.bias"}),
        ("torchvision:inception_v3", {"fc.weight", "fc.bias", "AuxLogits.fc.weight", "AuxLogits.fc.bias"}),
        ("timm:mobilenetv3_small_050", {"classifier.weight", "classifier.bias"}),
        ("lean:2:8x1", {"classifier.weight", "classifier.bias"}),
    ],
)
def test_the_head_is_found_in_every_family(name: str, expected: set[str]) -> None:
    assert head(name) == dict.fromkeys(expected, 0)


def change(state: State, **new: Tensor | None) -> State:
    return {k: v for k, v in (state | {k.replace("__", "."): v for k, v in new.items()}).items() if v is not None}


def test_what_does_not_fit_is_counted_and_named(trained: torch.nn.Module) -> None:
    state = trained.state_dict()
    for spoilt, words in (
        (change(state, features__0__weight=None), r"1 tensor\(s\) are missing \(features.0.weight\); give the weights of this network"),
        (change(state, other=torch.zeros(1), more=torch.zeros(1)), r"w does not fit .*: 2 are left over \(other, more\); give"),
        (change(state, features__0__bias=torch.zeros(7)), r"1 have another shape \('features.0.bias': 7 for 64\)"),
        (torchvision.models.resnet18(num_classes=3).state_dict(), r"52 tensor\(s\) are missing \(.*, \.\.\.\), 102 are left over"),
    ):
        with pytest.raises(UserError, match=words):
            fitted(spoilt, NAME, 3, "w")
    with pytest.raises(UserError, match="w has a head for 3 classes, and 5 are asked for: give the 3 names, or other weights"):
        fitted(state, NAME, 5, "w")
    fit = fitted(state, NAME, 5, "w", any_head=True)
    assert fit.new_head == 3 and fit.state.keys() == state.keys() - {"classifier.1.weight", "classifier.1.bias"}


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("a file of weights was executed",))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "not there": (lambda p: None, "there is no file of weights"),
    "empty": (lambda p: p.write_bytes(b""), "cannot be read as weights"),
    "text": (lambda p: p.write_text("hello"), "cannot be read as weights|holds more than tensors"),
    "evil": (lambda p: torch.save({"state_dict": Evil()}, p), "holds more than tensors, and igkd runs no code of a file"),
    "pickle alone": (lambda p: p.write_bytes(pickle.dumps(Evil())), "cannot be read as weights|holds more than tensors"),
    "a whole network": (lambda p: torch.save(torch.nn.Linear(2, 2), p), "holds more than tensors"),
    "a list": (lambda p: torch.save([torch.zeros(2)], p), "holds no tensors by name"),
    "no tensors": (lambda p: torch.save({"epoch": 3}, p), "holds no tensors by name"),
    "not finite": (
        lambda p: torch.save(change(torchvision.models.squeezenet1_1().state_dict(), features__0__bias=torch.full((64,), torch.nan)), p),
        "'features.0.bias' has values that are no finite numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(file: str, suffix: str, tmp_path: Path) -> None:
    write, words = FILES[file]
    write(tmp_path / f"w{suffix}")
    if suffix == ".safetensors" and file != "not there":
        words = "cannot be read as weights"
    with pytest.raises(UserError, match=words):
        open_teacher(f"{NAME},weights={tmp_path}/w{suffix}")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(tmp_path: Path, data: bytes) -> None:
    for suffix in (".pth", ".safetensors"):
        (tmp_path / f"w{suffix}").write_bytes(data)
        with pytest.raises(UserError):
            read_weights(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("text", ["torchvision:resnet18,weights=a,weights=b,seed=1", "torchvision:resnet18,seed=1", "lean:2:8x1,weights="])
def test_malformed_teachers(text: str) -> None:
    with pytest.raises(UserError):
        open_teacher(text)


def test_networks_that_do_not_say_how_their_pictures_are_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`igkd import lean:2:8x1` with --image-size N --mean R G B --std R G B"):
        open_teacher(f"lean:2:8x1,weights={tmp_path}/w.pth")
