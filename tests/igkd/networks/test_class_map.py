"""A teacher of many classes on pictures of some of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from igkd.base.errors import UserError
from igkd.images.class_names import among
from igkd.networks.class_map import mapped, read_class_map
from igkd.networks.network import Classifier, NetworkSpec
from igkd.networks.renumbered import for_pictures, restricted
from igkd.networks.torchvision import imagenet_categories

KNOWN = ("tench, Tinca tinca", "tabby, tabby cat", "crane", "ox", "crane", "great grey owl, Strix nebulosa")


def network(classes: tuple[str, ...] = KNOWN) -> Classifier:
    torch.manual_seed(0)
    return Classifier(NetworkSpec(classes=classes, image_shape=(4, 4)), nn.Sequential(nn.Flatten(), nn.Linear(48, len(classes)))).eval()


@given(st.lists(st.text("abc_ X", min_size=1, max_size=4), min_size=3, max_size=12, unique=True), st.data())
def test_classes_with_the_same_names_are_found(names: list[str], data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    found = among(names, some, "it")
    assert found is not None and [names[i] for i in found] == some


def test_synonyms_in_any_spelling() -> None:
    found = among(KNOWN, ["Tabby_cat", "OX", "great grey owl", "tench"], "it")
    assert found is not None and found.tolist() == [1, 3, 5, 0]
    assert among(KNOWN, ["ox", "cow"], "it") is None
    for given_names, words in (
        (["crane"], r"crane could be 2 classes that it knows \(2, 4, .*--class-map"),
        (["tabby", "tabby cat"], "are one"),
    ):
        with pytest.raises(UserError, match=words):
            among(KNOWN, given_names, "it")


def test_the_logits_of_the_pictures_classes_and_a_line() -> None:
    model, pixels = network(), torch.rand(3, 3, 4, 4)
    some, line = restricted(model, "the teacher t", "folder:p", ("ox", "tabby"), "train another")
    with torch.no_grad():
        assert torch.equal(some(pixels), model(pixels)[:, [3, 1]])
    assert some.spec.classes == ("ox", "tabby") and some.get_submodule("network").get_submodule("1") is model.network[1]
    assert line == (
        "the teacher t knows 6 classes, of which 2 are used: ox, tabby (tabby, tabby cat); students have these, "
        "and learn from its logits of these alone"
    )
    assert restricted(model, "t", "p", KNOWN, "x") == (model, None) == restricted(model, "t", "p", (*KNOWN, "more"), "x")
    with pytest.raises(UserError, match="knows 6 classes, folder:p has 2; .*--class-map FILE, or train another"):
        restricted(model, "the teacher t", "folder:p", ("ox", "cow"), "train another")


def test_imagenets_classes_by_their_names() -> None:
    names = imagenet_categories()
    some, _ = restricted(network(names), "t", "p", ("goldfish", "Tabby", "espresso"), "x")
    assert some.network.order.tolist() == [names.index("goldfish"), names.index("tabby"), names.index("espresso")] == [1, 281, 967]


WRITTEN: dict[str, Callable[[Path], object]] = {
    "map.json": lambda p: p.write_text(json.dumps({"cat": "tabby", "bird": 4, "extra": 0, "beef": "3"})),
    "map.csv": lambda p: p.write_text('cat,"tabby, tabby cat"\n\nbird,4\nextra,0\nbeef,ox\n'),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_says_which_class_is_which(name: str, tmp_path: Path) -> None:
    WRITTEN[name](tmp_path / name)
    numbers = mapped(tmp_path / name, KNOWN, ("beef", "cat", "bird"), "the teacher", "the pictures")
    assert numbers.tolist() == [3, 1, 4] and numbers.dtype == np.int64
    some, line = for_pictures(network(), "the teacher", "p", ("beef", "bird"), "x", str(tmp_path / name))
    assert some.spec.classes == ("beef", "bird") and line is not None and "beef (ox), bird (crane)" in line
    with torch.no_grad():
        assert some(torch.zeros(1, 3, 4, 4)).tolist() == network()(torch.zeros(1, 3, 4, 4))[:, [3, 4]].tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "it is empty"),
        ('{"cat": 1.5, "bird": 0}', "'cat' has no name or number"),
        ('{"cat": true, "bird": 0}', "'cat' has no name or number"),
        ('{"cat": 1}', "lacks 1 of the classes of the pictures: bird"),
        ('{"cat": 1, "bird": 6}', "bird is to be class '6' of the teacher, which has 0 to 5"),
        ('{"cat": 1, "bird": -1}', "bird is to be class '-1'"),
        ('{"cat": 1, "bird": "dodo"}', "the teacher knows no class 'dodo', which bird is to be"),
        ('{"cat": 1, "bird": "crane"}', "crane could be 2 classes"),
        ('{"cat": 1, "bird": "tabby"}', "cat and bird are one class of the teacher"),
    ],
)
def test_files_that_are_no_map(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match=words):
        mapped(tmp_path / "m.json", KNOWN, ("cat", "bird"), "the teacher", "the pictures")


@pytest.mark.parametrize("data", [b"", b"a\n", b"a,b,c\n", b"\xff\xfe", b"a,1\na,2\n"])
def test_tables_that_are_no_map(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(UserError, match="--class-map"):
        read_class_map(tmp_path / "m.csv")
    with pytest.raises(UserError, match="there is no such file"):
        read_class_map(tmp_path / "none.csv")
