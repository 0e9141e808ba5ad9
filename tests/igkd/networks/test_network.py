import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import MobileNetV2

from igkd.base.errors import UserError
from igkd.networks.checkpoint import checkpoint_card, load, save
from igkd.networks.families import on_meta, tap_of
from igkd.networks.mobilenet import CUTS
from igkd.networks.network import Classifier, NetworkSpec, build, multiply_adds, parameter_count
from tests.helpers.networks import hooked_multiply_adds, lively, same_state

TEN = tuple("abcdefghij")
# cut: parameters, compression, M multiply-adds, attention divider; copied from the paper's table.
TABLE = {
    0: (2236682, 1.0, 88.0, None),
    3: (1019402, 2.19, 68.8, 2),
    5: (543498, 4.12, 58.7, 2),
    7: (306954, 7.29, 43.9, 2),
    9: (185738, 12.04, 36.4, 4),
    11: (77194, 28.97, 29.6, 4),
    13: (40970, 54.59, 23.6, 4),
    15: (16042, 139.43, 14.9, 8),
    17: (1994, 1121.71, 1.7, 20),
}
PAPER_STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]
SMALL = NetworkSpec(
    classes=("a", "b", "c"), image_shape=(16, 12), name="mobilenet:cut=11,width=0.35", mean=(0.49, 0.48, 0.44), std=(0.24, 0.25, 0.26)
)


def some_pixels(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count + height * width))


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_has_the_sizes_of_the_paper(cut: int) -> None:
    model = Classifier(NetworkSpec(classes=TEN, image_shape=(32, 32), name=f"mobilenet:cut={cut}"))
    parameters, compression, millions, divider = TABLE[cut]
    assert parameter_count(model) == parameters
    assert round(TABLE[0][0] / parameters, 2) == compression
    assert round(multiply_adds(model) / 1e6, 1) == millions
    assert multiply_adds(model) == hooked_multiply_adds(model)
    assert tap_of(model.spec.name, "mobilenet") == (None if divider is None else f"features.{19 // divider}")
    assert divider is None or 19 // divider < len(model.network.features)


@pytest.mark.parametrize("student", [cut for cut in CUTS if cut])
@pytest.mark.parametrize("teacher", CUTS)
def test_a_tap_is_a_layer_of_both(student: int, teacher: int) -> None:
    """A teacher may itself be cut, and then lacks the layer of the paper."""
    networks = [
        Classifier(NetworkSpec(classes=TEN, image_shape=(32, 32), name=f"mobilenet:cut={cut},width=0.1")) for cut in (student, teacher)
    ]
    tap = tap_of(*(network.spec.name for network in networks))
    shared = min(len(network.network.features) for network in networks)
    assert (tap is not None) == (TABLE[student][3] is not None and 19 // (TABLE[student][3] or 1) < shared)
    for network in networks if tap is not None else []:
        network.network.get_submodule(tap)


def test_no_cut_of_the_paper_is_forgotten() -> None:
    assert set(CUTS) == set(TABLE)


@pytest.mark.parametrize(("cut", "width", "stride", "shape"), [(0, 0.5, 2, (64, 48)), (7, 1.4, 1, (17, 32)), (17, 0.35, 2, (9, 15))])
def test_multiply_adds_at_other_widths_and_shapes(cut: int, width: float, stride: int, shape: tuple[int, int]) -> None:
    model = Classifier(NetworkSpec(classes=TEN, image_shape=shape, name=f"mobilenet:cut={cut},width={width},stride={stride}"))
    assert multiply_adds(model) == hooked_multiply_adds(model)


def test_counting_multiply_adds_leaves_the_network_as_it_was() -> None:
    model = lively(build(SMALL, 0)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    multiply_adds(model)
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("stride", [1, 2])
def test_the_whole_network_is_torchvisions(stride: int) -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    ours = lively(build(NetworkSpec(classes=TEN, image_shape=(32, 32), mean=mean, std=std, name=f"mobilenet:stride={stride}"), 3))
    theirs = MobileNetV2(num_classes=10, inverted_residual_setting=PAPER_STAGES).eval()
    theirs.features[0][0].stride = (stride, stride)
    state = {k.replace("classifier.", "classifier.1."): v for k, v in ours.network.state_dict().items()}
    assert state.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(state)
    pixels = some_pixels(4, 32, 32)
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        expected = theirs(normalised)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(pixels), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.from_normalised(normalised), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", CUTS)
def test_a_student_is_the_front_of_the_teacher(cut: int) -> None:
    teacher = Classifier(NetworkSpec(classes=TEN, image_shape=(32, 32))).network.state_dict()
    student = Classifier(NetworkSpec(classes=TEN, image_shape=(32, 32), name=f"mobilenet:cut={cut}"))
    entries = {k.split(".")[1] for k in student.network.state_dict() if k.startswith("features.")}
    assert entries == {str(i) for i in range(19 - cut)}
    assert all(v.shape == teacher[k].shape for k, v in student.network.state_dict().items() if k.startswith("features."))


@pytest.mark.parametrize("cut", [0, 11])
def test_a_tap_is_the_output_of_that_layer(cut: int) -> None:
    model = lively(build(NetworkSpec(classes=TEN, image_shape=(16, 12), name=f"mobilenet:cut={cut},width=0.35"), 1))
    pixels = some_pixels(2, 16, 12)
    with torch.no_grad():
        plain = model(pixels)
        for tap in range(len(model.network.features)):
            seen: list[Tensor] = []
            handle = model.network.features[tap].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
            model(pixels)
            handle.remove()
            logits, tapped = model(pixels, (f"features.{tap}",))
            assert tapped.keys() == {f"features.{tap}"} and torch.equal(tapped[f"features.{tap}"], seen[0])
            assert torch.equal(logits, plain)


def test_building_depends_on_the_seed_alone_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(SMALL, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_state(first, build(SMALL, 5))
    assert not same_state(first, build(SMALL, 6))


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path) -> None:
    model = lively(build(SMALL, 0)).train()
    save(model, tmp_path / "new" / "place", {"seed": 3})
    assert model.training
    back = load(tmp_path / "new" / "place")
    assert not back.training
    assert back.spec == model.spec
    assert same_state(model, back)
    pixels = some_pixels(3, 16, 12)
    with torch.no_grad():
        assert torch.equal(back(pixels), model.eval()(pixels))
    card = checkpoint_card(tmp_path / "new" / "place")
    assert card["made"] == {"seed": 3} and card["parameters"] == parameter_count(model)
    assert sorted(p.name for p in (tmp_path / "new" / "place").iterdir()) == ["model.json", "model.safetensors"]


def test_half_precision_checkpoint(tmp_path: Path) -> None:
    model = lively(build(SMALL, 0))
    save(model, tmp_path / "whole", {})
    save(model, tmp_path / "half", {}, half=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    back = load(tmp_path / "half").state_dict()
    inexact = 0
    for key, value in model.state_dict().items():
        assert back[key].dtype == value.dtype
        # Rounding to 11 significant bits, or to multiples of 2^-24 where float16 has no more.
        assert ((back[key] - value).abs() <= value.abs() * 2**-11 + 2**-25).all()
        inexact += int((back[key] != value).sum())
    assert inexact > 0


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(build(SMALL, 0), tmp_path, {})
    save(build(SMALL, 1), tmp_path, {})
    assert same_state(load(tmp_path), build(SMALL, 1))


def flip_a_bit(directory: Path) -> None:
    data = bytearray((directory / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (directory / "model.safetensors").write_bytes(data)


def truncate(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:-10])


def edit_card(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        card = json.loads((directory / "model.json").read_bytes())
        change(card)
        (directory / "model.json").write_text(json.dumps(card))

    return apply


class Bomb:
    """What unpickling this does would be seen."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (pytest.fail, ("a checkpoint was unpickled",))


def pickled(directory: Path) -> None:
    data = pickle.dumps(Bomb())
    (directory / "model.safetensors").write_bytes(data)
    edit_card(lambda card: card.update(sha256=hashlib.sha256(data).hexdigest()))(directory)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda d: [f.unlink() for f in d.iterdir()], "no checkpoint.*jobs.teacher or jobs.distill"),
    "no card": (lambda d: (d / "model.json").unlink(), "no checkpoint.*jobs.teacher or jobs.distill"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors cannot be read.*incomplete"),
    "a bit flipped": (flip_a_bit, "does not match.*damaged"),
    "truncated": (truncate, "does not match.*damaged"),
    "pickle": (pickled, "not a checkpoint of this project"),
    "card is no JSON": (lambda d: (d / "model.json").write_text("{"), "not JSON.*damaged"),
    "card is binary": (lambda d: (d / "model.json").write_bytes(b"\xff\xfe\x00"), "not JSON.*damaged"),
    "card is a list": (lambda d: (d / "model.json").write_text("[1]"), "not a checkpoint of this project"),
    "card of something else": (lambda d: (d / "model.json").write_text('{"layers": 3}'), "not a checkpoint of this project"),
    "more classes": (edit_card(lambda c: c["spec"]["classes"].append("d")), "not a checkpoint of this project"),
    "another cut": (edit_card(lambda c: c["spec"].update(name="mobilenet:cut=9,width=0.35")), "not a checkpoint of this project"),
    "unknown cut": (edit_card(lambda c: c["spec"].update(name="mobilenet:cut=4")), "cut 4 is not one of 0, 3, 5"),
    "unknown setting": (edit_card(lambda c: c["spec"].update(depth=4)), "not a checkpoint of this project.*depth"),
    "setting missing": (edit_card(lambda c: c["spec"].pop("classes")), "not a checkpoint of this project.*classes"),
    "of an older igkd": (edit_card(lambda c: c["spec"].pop("name")), "an older igkd made it; train it anew"),
    "setting of another type": (edit_card(lambda c: c["spec"].update(name=["mobilenet"])), "not a checkpoint of this project"),
    "spec is a number": (edit_card(lambda c: c.update(spec=3)), "not a checkpoint of this project"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_words(damage: str, tmp_path: Path) -> None:
    directory = tmp_path / "made"
    save(build(SMALL, 0), directory, {})
    spoil, words = DAMAGE[damage]
    spoil(directory)
    with pytest.raises(UserError, match=words) as caught:
        load(directory)
    assert str(directory) in str(caught.value)


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save(build(SMALL, 0), tmp_path / "file", {})
    with pytest.raises(UserError, match="no checkpoint"):
        load(tmp_path / "file")


def test_on_meta_only_what_has_no_values_is_not_filled() -> None:
    """A network may compute sizes with tensors of its own device while it is made."""

    def compute() -> tuple[list[float], torch.Size, bool]:
        layer = torch.nn.Conv2d(3, 4, 3)
        torch.nn.init.kaiming_normal_(layer.weight)
        torch.nn.init.constant_(tensor=layer.weight, val=1.0)
        sizes = torch.nn.init.constant_(torch.empty(2, device="cpu"), 3.0) + torch.empty(2, device="cpu").fill_(2)
        return sizes.tolist(), layer.weight.shape, layer.weight.is_meta

    assert on_meta("mobilenet", compute) == ([5.0, 5.0], (4, 3, 3, 3), True)
