"""Lean students: their name, their size, their checkpoints and files, and that tables tell them from cut ones."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd.attribution.base import FromBaseline
from igkd.attribution.fast import folded
from igkd.base.choices import Arm
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.recipes import distill_config, recipe_file
from igkd.deployment import formats
from igkd.deployment.export import as_decoded
from igkd.evaluation.comparisons import families, grouped
from igkd.evaluation.evaluate import predict
from igkd.evaluation.speed import pareto
from igkd.images import drawn_shapes
from igkd.images.open import open_images
from igkd.images.samples import load_samples
from igkd.networks import lean
from igkd.networks.checkpoint import load, save
from igkd.networks.lean import MAX_BLOCKS, MAX_STAGES, MAX_WIDTH, Lean, parse
from igkd.networks.network import NetworkSpec, build, multiply_adds, parameter_count
from igkd.sweeps.candidates import candidates
from igkd.sweeps.grid import make_cell
from igkd.training.student_checks import attention_tap, check_attention
from tests.helpers.networks import hooked_multiply_adds, lively, same_state, settled
from tests.helpers.paths import ROOT
from tests.helpers.stores import tiny_plan
from tests.helpers.sweep_rows import SETTINGS, row

NAME = "2:8x1,16x2,24x1"
SPEC = NetworkSpec(classes=drawn_shapes.CLASSES, image_shape=(32, 32), name=f"lean:{NAME}", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
ANY = st.builds(
    Lean,
    st.sampled_from(lean.STEMS),
    st.lists(st.tuples(st.integers(1, MAX_WIDTH), st.integers(1, MAX_BLOCKS)), min_size=1, max_size=MAX_STAGES).map(tuple),
)
SMALL = st.builds(
    Lean,
    st.sampled_from(lean.STEMS),
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 2)), min_size=1, max_size=4).map(tuple),
)


@settings(deadline=None)
@given(ANY)
def test_a_name_is_an_architecture_and_back(one: Lean) -> None:
    assert parse(str(one)) == one
    NetworkSpec(classes=("a", "b"), image_shape=(8, 8), name=f"lean:{str(one)}")


@pytest.mark.parametrize(
    "text",
    [
        "", "2", "2:", "3:32x1", "2:32x1,", "2:,32x1", "2:032x1", "2:32x01", "2:32x0", "2:0x1", "2:-3x1", "2:32x1 ", " 2:32x1", "2:32x1\n",
        "2:1025x1", "2:8x17", "2:99999999999x1", "2:8x1" + ",8x1" * 6, "2:8x1" * 100_000, "2:٣x1", "2:8x1;import os", "8:8x1", "2:1e3x1",
    ],
)  # fmt: skip
def test_what_names_none_is_refused_in_a_short_sentence(text: str) -> None:
    with pytest.raises(UserError, match="names no network; one is lean:2:32x1") as caught:
        parse(text)
    assert len(str(caught.value)) < 350


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_an_architecture_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        assert str(parse(text)) == text


@pytest.mark.parametrize("name", ["x", "2:4096x1", 7, None, ["2:8x1"]])
def test_a_checkpoint_that_names_another_thing_is_refused_in_words(name: object, tmp_path: Path) -> None:
    save(build(SPEC, 0), tmp_path, {})
    card = json.loads((tmp_path / "model.json").read_text())
    card["spec"]["name"] = f"lean:{name}" if isinstance(name, str) else name
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="names no network|not a checkpoint of this project"):
        load(tmp_path)


def test_a_huge_architecture_takes_no_memory_before_it_is_refused(tmp_path: Path) -> None:
    save(build(SPEC, 0), tmp_path, {})
    card = json.loads((tmp_path / "model.json").read_text())
    card["spec"]["name"] = "lean:2:" + ",".join(["1024x16"] * 6)
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="do not fit its spec"):
        load(tmp_path)


@settings(deadline=None, max_examples=20)
@given(SMALL, st.integers(1, 4), st.tuples(st.integers(4, 20), st.integers(4, 20)))
def test_shapes_sizes_and_taps(one: Lean, classes: int, shape: tuple[int, int]) -> None:
    model = build(NetworkSpec(classes=tuple("abcd"[:classes]), image_shape=shape, name=f"lean:{str(one)}"), 0).eval()
    assert parameter_count(model) == one.parameters(classes)
    assert multiply_adds(model) == hooked_multiply_adds(model)
    with torch.no_grad():
        x = torch.rand(2, 3, *shape)
        logits, outputs = model(x, ("features.0",))
        tapped = outputs["features.0"]
        assert logits.shape == (2, classes) and torch.equal(logits, model(x))
        below = one.stem * 2 ** (len(one.stages) - 1)
        assert tapped.shape == (2, one.stages[0][0], *(-(-side // one.stem) for side in shape))
        assert model.network.features(x).shape == (2, one.last_width, *(-(-side // below) for side in shape))


@settings(deadline=None, max_examples=25)
@given(st.integers(8_000, 2_500_000), st.integers(0, 99), st.sampled_from([(32, 32), (224, 160), (16, 20), (3, 3)]), st.integers(2, 100))
def test_candidates_keep_the_limit_and_begin_with_the_same_ones(limit: int, seed: int, shape: tuple[int, int], classes: int) -> None:
    try:
        found = candidates(limit, 6, seed, classes, shape)
    except UserError as error:
        assert limit < 40_000 and "there are only" in str(error)
        return
    assert len(set(found)) == 6 and found[:3] == candidates(limit, 3, seed, classes, shape)
    for one in found:
        assert limit / 2 <= one.parameters(classes) <= limit
        widths = [width for width, _ in one.stages]
        assert widths == sorted(widths) and parse(str(one)) == one


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path) -> None:
    model = lively(build(SPEC, 0))
    save(model, tmp_path, {})
    back = load(tmp_path)
    assert back.spec == SPEC and same_state(model, back)
    assert same_state(build(SPEC, 3), build(SPEC, 3)) and not same_state(build(SPEC, 3), build(SPEC, 4))


def test_batch_norms_fold() -> None:
    model = lively(build(SPEC, 0))
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        network, why = folded(FromBaseline(model, None).eval(), x.shape[1:])
        assert why == "" and not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
        torch.testing.assert_close(network(x), model.from_normalised(x), rtol=1e-4, atol=1e-4)


STEP = """
import torch
from igkd.networks.network import build
from tests.igkd.networks.test_lean import SPEC
torch.set_num_threads(2)
model = build(SPEC, 0).to(memory_format=torch.channels_last).train()
for step in range(10):
    model(torch.rand(45, 3, 32, 32).contiguous(memory_format=torch.channels_last)).logsumexp(1).sum().backward()
print("alive")
"""


def test_a_narrow_one_outlives_its_backward_pass() -> None:
    """oneDNN's of a strided 1x1 convolution from few channels destroys the heap."""
    ended = subprocess.run([sys.executable, "-c", STEP], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "alive\n"), ended.stderr


@pytest.mark.parametrize("stem", lean.STEMS)
def test_every_pixel_is_seen(stem: int) -> None:
    torch.manual_seed(0)
    network, x = lean.features(Lean(stem, ((8, 1), (16, 2)))).eval(), torch.rand(2, 3, 17, 16, requires_grad=True)
    network(x).sum().backward()
    assert (x.grad != 0).any(0).all()


def test_its_files_give_what_the_checkpoint_gives() -> None:
    model = settled(build(SPEC, 1))
    with torch.no_grad():
        model.network.classifier.weight.mul_(50)
    samples = load_samples(open_images("shapes:train=200"), "train", np.arange(200))[0]
    pixels, expected = as_decoded(samples), predict(model, samples).numpy()
    network = formats.to_onnx(model)
    assert "Slice" not in {node.op_type for node in network.graph.node}  # what gradients alone need
    np.testing.assert_allclose(formats.run_onnx(network, pixels), expected, atol=1e-5 * np.abs(expected).max())
    int8 = formats.run_onnx(formats.to_int8(network, pixels[:64]), pixels)
    assert (int8.argmax(1) == expected.argmax(1)).mean() > 0.9


@pytest.mark.parametrize("arm", ["at", "kd+at", "kd+ig+at"])
def test_attention_is_transferred_to_the_deepest_layer_of_the_teachers_size(arm: Arm) -> None:
    config = DistillConfig(store="s", out="o", student=f"lean:{NAME}", arm=arm)
    check_attention(config, tiny_plan())
    assert attention_tap(config, tiny_plan()) == "features.1"  # NAME halves 3x5 pixels in its stem, and has one block at 2x3


def test_a_label_a_directory_and_a_recipe_say_which_it_is(tmp_path: Path) -> None:
    one = distill_config("strong", store="s", out="o", arm="kd", student=f"lean:{NAME}")
    assert one.label == "kd, strong"
    assert make_cell("out", one).name == "kd-strong-lean-2-8x1-16x2-24x1-seed0"
    path = tmp_path / "best.json"
    path.write_text(json.dumps(recipe_file(one, {}) | {"student": one.student}))
    assert distill_config(str(path), store="s", out="o").student == f"lean:{NAME}"


def test_lean_students_are_compared_with_the_same_network_alone() -> None:
    rows = []
    for seed in range(3):
        for name, accuracy in ((f"lean:{NAME}", 0.8), ("lean:4:16x1,32x1", 0.7), ("mobilenet:cut=5", 0.9)):
            for arm in ("student", "kd"):
                config = SETTINGS | {"student": name}
                one = row(arm, seed, accuracy + 0.01 * (arm == "kd") + 0.001 * seed**2, config=config, recipe="paper")
                rows.append(one | {"network": name})
    groups = grouped(rows, "test")
    names = ("mobilenet:cut=5", f"lean:{NAME}", "lean:4:16x1,32x1")
    assert {group.label for group in groups} == {f"{arm}, {name}" for arm in ("student", "kd") for name in names}
    (family,) = families(groups)
    assert {(arm.network, other.network) for arm, other in family.pairs} == {(n, n) for n in names}
    assert all(arm.base == "kd" and other.base == "student" for arm, other in family.pairs)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nothing_is_better_than(points: list[tuple[int, int]]) -> None:
    def better(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    assert pareto(points) == [not any(better(other, one) for other in points) for one in points]


@pytest.mark.parametrize(("before", "stride"), [(8, 1), (6, 2)])
def test_a_block_is_torchvisions_basic_block(before: int, stride: int) -> None:
    from torchvision.models.resnet import BasicBlock

    beside = [None if stride == 1 else torch.nn.Conv2d(before, 8, 1, stride) for _ in range(2)]
    ours, theirs = lean.Block(before, 8, stride, beside[0], torch.nn.BatchNorm2d), BasicBlock(before, 8, stride, beside[1])
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, before, 12, 12)
    assert torch.equal(ours(x), theirs(x)) and same_state(ours, theirs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = lean.Block(before, 8, stride, None, torch.nn.BatchNorm2d)
        torch.manual_seed(0)
        assert same_state(drawn, BasicBlock(before, 8, stride))
