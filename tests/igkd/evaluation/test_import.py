"""igkd import: a checkpoint of a network that was trained elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from igkd.base.errors import UserError
from igkd.config.import_network import ImportConfig
from igkd.evaluation.import_network import class_list, import_network, renamed
from igkd.networks import checkpoint
from igkd.networks.preparation import Preparation
from tests.helpers.modules import write_module

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(3, classes)
    def forward(self, x):
        return self.head(x.mean(dim=(2, 3)))
def net(classes):
    return Net(classes)
"""
"""Its logits are the mean of each channel, if the head is the identity."""


@pytest.fixture
def coloured(tmp_path: Path) -> str:
    for split, count in (("train", 12), ("test", 10)):
        for name, colour in COLOURS.items():
            for number in range(count):
                path = tmp_path / "images" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((20, 30, 3), np.array(colour) * (number + 5) // 20, np.uint8)).save(path)
    return f"folder:{tmp_path}/images"


def configure(tmp_path: Path, coloured: str, place: str, **changes: Any) -> ImportConfig:
    usual = {
        "weights": str(tmp_path / "w.pth"),
        "classes": str(tmp_path / "classes.txt"),
        "image_size": 16,
        "mean": (0.5,) * 3,
        "std": (1.0,) * 3,
    }
    return ImportConfig(network=f"module:{place}:net", out=str(tmp_path / "out"), **{"images": coloured} | usual | changes)  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    torch.save({"module.head.weight": torch.eye(3), "module.head.bias": torch.zeros(3)}, tmp_path / "w.pth")
    return write_module(tmp_path, NET, monkeypatch)


def test_a_network_of_known_answers(tmp_path: Path, coloured: str, place: str) -> None:
    lines = import_network(configure(tmp_path, coloured, place))
    assert lines == [
        f"module:{place}:net, 3 classes, 16x16 pixels, mean 0.5 0.5 0.5, deviation 1 1 1: "
        f"100.0% of 30 test images right; written to {tmp_path}/out",
        f"commands with --teacher {tmp_path}/out run your code only if you say IGKD_MODULES={place}:net before them",
    ]
    back, card = checkpoint.load(tmp_path / "out"), checkpoint.checkpoint_card(tmp_path / "out")
    assert back.spec.classes == ("red", "green", "blue") and card["made"]["test"]["accuracy"] == 1
    assert card["made"]["config"]["image_size"] == 16
    with torch.no_grad():
        assert back(torch.tensor([0.1, 0.9, 0.3]).view(1, 3, 1, 1).expand(-1, -1, 16, 16)).tolist()[0] == pytest.approx([-0.4, 0.4, -0.2])


def test_a_wrong_order_of_classes_is_seen_at_once(tmp_path: Path, coloured: str, place: str) -> None:
    lines = import_network(configure(tmp_path, coloured, place, classes=coloured))  # sorted: blue, green, red
    assert "33.3% of 30" in lines[0] and lines[1].startswith(
        "warning: that is near chance (33.3% with 3 classes): is the order of --classes that of"
    )


def test_classes_by_a_map(tmp_path: Path, coloured: str, place: str) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"red": 0, "green": "lawn", "blue": 2}))
    (tmp_path / "names.json").write_text(json.dumps(["fire", "lawn", "sky", "night"]))
    torch.save(
        {"head.weight": torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]), "head.bias": torch.full((4,), -9.0)},
        tmp_path / "w.pth",
    )
    changes = {"classes": str(tmp_path / "names.json"), "class_map": str(tmp_path / "map.json")}
    lines = import_network(configure(tmp_path, coloured, place, **changes))
    assert "knows 4 classes, of which 3 are used: " in lines[0] and "100.0% of 30" in lines[1] and len(lines) == 3
    assert checkpoint.load(tmp_path / "out").spec.classes == ("red", "green", "blue", "night")


@pytest.mark.parametrize(
    ("known", "given", "expected"),
    [
        (("a", "b", "c"), {1: "x"}, ("a", "x", "c")),
        (("circle", "square", "star"), {2: "dog", 1: "circle"}, ("circle (0)", "circle", "dog")),  # the pictures' names stay
        (("crane", "dog", "crane"), {2: "crane"}, ("crane (0)", "dog", "crane")),
        (("crane", "dog", "crane"), {1: "hund"}, ("crane (0)", "hund", "crane (2)")),
    ],
)
def test_of_two_classes_of_one_name_the_pictures_keeps_it(known: tuple[str, ...], given: dict[int, str], expected: tuple[str, ...]) -> None:
    assert renamed(known, given) == expected and len(set(expected)) == len(expected)


def test_a_map_may_name_a_class_as_another_one_of_the_network(tmp_path: Path, coloured: str, place: str) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"red": "blue", "green": "green", "blue": "sky"}))
    (tmp_path / "names.json").write_text(json.dumps(["blue", "green", "sky", "red"]))
    torch.save(
        {"head.weight": torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]), "head.bias": torch.full((4,), -9.0)},
        tmp_path / "w.pth",
    )
    changes = {"classes": str(tmp_path / "names.json"), "class_map": str(tmp_path / "map.json")}
    assert "100.0% of 30" in import_network(configure(tmp_path, coloured, place, **changes))[1]
    assert checkpoint.load(tmp_path / "out").spec.classes == ("red", "green", "blue", "red (3)")


def test_an_import_may_be_made_again_but_replaces_no_other_jobs_network(tmp_path: Path, coloured: str, place: str) -> None:
    for _ in range(2):
        import_network(configure(tmp_path, coloured, place))
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    card["made"]["job"] = "teacher"
    (tmp_path / "out" / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="holds something else than an imported network"):
        import_network(configure(tmp_path, coloured, place))
    assert json.loads((tmp_path / "out" / "model.json").read_text()) == card


@pytest.mark.parametrize("name", ["config.json", "result.json", "plan.json", "cat"])
def test_the_directory_of_a_run_is_no_place_for_an_import(tmp_path: Path, coloured: str, place: str, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(UserError, match="holds something else than an imported network"):
        import_network(configure(tmp_path, coloured, place))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"std": (float("inf"), 0.2, 0.2)}, "the std of module:.* cannot be"),
        ({"mean": (float("nan"), 0.2, 0.2)}, "the mean of module:.* cannot be"),
        ({"image_size": 9000}, "the image_shape of module:.* cannot be"),
    ],
)
def test_a_preparation_that_no_checkpoint_may_have_is_refused_before_anything_is_written(
    tmp_path: Path, coloured: str, place: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        import_network(configure(tmp_path, coloured, place, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"short_side": 15},
        {"image_shape": (16, -5)},
        {"image_shape": (0, 16)},
        {"mean": (0.5, 0.4)},
        {"std": ()},
        {"std": (0.2, 0.0, 0.2)},
    ],
)
def test_what_a_module_says_of_its_pictures_has_a_range(given: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"image_shape": (16, 16), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    assert Preparation(**usual).complete("net")["image_shape"] == (16, 16)
    with pytest.raises(UserError, match=f"the {next(iter(given))} of net cannot be"):
        Preparation(**usual | given).complete("net")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": None}, "does not say how its pictures are prepared: .* with --image-size N"),
        ({"mean": None, "std": None}, "with --mean R G B --std R G B"),
        ({"classes": "shapes"}, "has a head for 3 classes, and 10 are asked for: give the 3 names"),
        ({"classes": "nothing"}, "--classes nothing is no file, and 'nothing' names no images"),
        ({"weights": "none"}, "--weights none imports nothing"),
        ({"weights": "default"}, "must be told its number of classes"),
        ({"images": "shapes:train=20,test=20"}, "knows 3 classes, shapes.* has 10; give --images of its own classes"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, coloured: str, place: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        import_network(configure(tmp_path, coloured, place, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"), [({"limit": 0}, "at least 1"), ({"image_size": 0}, "at least 1"), ({"std": (1, 0, 1)}, "above 0")]
)
def test_settings_that_are_impossible(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ImportConfig(network="x", out="o", images="i", **changes)


def test_lists_of_classes(tmp_path: Path) -> None:
    for name, text, expected in (
        ("c.txt", "\ufeffa b\r\n\r\n c\n", ("a b", "c")),
        ("c.json", '["x", "y"]', ("x", "y")),
        ("c.txt", "a\na\n", "names a twice"),
        ("c.txt", "", "a name on each line"),
        ("c.json", "[1]", "a JSON list of names"),
        ("c.json", "{", "JSON"),
    ):
        (tmp_path / name).write_text(text)
        if isinstance(expected, tuple):
            assert class_list(str(tmp_path / name)) == expected
        else:
            with pytest.raises(UserError, match=expected):
                class_list(str(tmp_path / name))
