"""What the teacher gives and no store can hold; and how its maps are computed."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from igkd import store
from igkd.base.choices import Engine
from igkd.base.errors import UserError
from igkd.config.precompute import PrecomputeConfig
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, build
from igkd.store import Store, compute, verify
from tests.helpers.networks import lively
from tests.helpers.pictures import BAD
from tests.helpers.stores import make_store


def test_rows_are_readable_by_column(finished: str) -> None:
    tables = [pq.read_table(p) for p in sorted(Path(finished).glob("*.parquet"))]
    assert sum(map(len, tables)) == 26 and all(t.schema == tables[0].schema for t in tables)


def scaled_teacher(teacher: str, factor: float, bias: float = 0.0) -> Classifier:
    model = checkpoint.load(teacher)
    with torch.no_grad():
        model.network.classifier.weight.mul_(factor)
        model.network.classifier.bias.mul_(factor).add_(bias)
    return model


@pytest.mark.parametrize(
    ("factor", "bias", "precision", "words"),
    [
        (
            1e8,
            0.0,
            "float16",
            r"image 0 .*: the teacher gives a map with the value [0-9.e+]+, above 65504, .*--precision float32",
        ),
        (3e38, 0.0, "float32", r"image 0 .*: the teacher gives .* with the value (inf|nan|-inf), which is no finite number"),
        (1.0, math.inf, "float32", r"image 0 .*: the teacher gives logits with the value inf, which is no finite number"),
        (1.0, math.nan, "float16", r"image 0 .*: the teacher gives logits with the value nan, which is no finite number"),
    ],
)
@pytest.mark.parametrize("engine", ["captum", "torch"])
def test_what_no_store_can_hold_is_refused_where_it_happens(
    store_config: PrecomputeConfig, engine: Engine, factor: float, bias: float, precision: str, words: str
) -> None:
    config = dataclasses.replace(store_config, images="shapes:train=30", engine=engine, precision=precision, steps=2)
    source, model = open_images(config.images), scaled_teacher(config.teacher, factor, bias)
    plan, selection = compute.make_plan(config, source, model, "sha")
    rows = compute.read_rows(source, plan, selection.part(plan, 0))
    with pytest.raises(UserError, match=words) as caught:
        compute.attribute_rows(model, compute.plan_attributor(model, plan), plan, rows)
    assert "\n" not in str(caught.value)


def test_large_logits_fit_into_single_precision_and_tiny_ones_are_counted(store_config: PrecomputeConfig, tmp_path: Path) -> None:
    for factor, precision, zero in ((1e6, "float32", 0), (1e-9, "float32", 0), (1e-12, "float16", 7)):
        model = scaled_teacher(store_config.teacher, factor)
        checkpoint.save(model, tmp_path / f"teacher {factor}", {})
        config = dataclasses.replace(
            store_config, images="shapes:train=30", limit=7, precision=precision, teacher=str(tmp_path / f"teacher {factor}"), steps=2,
            store=str(tmp_path / f"store {factor}"), engine="torch",
        )  # fmt: skip
        manifest = make_store(config)
        assert manifest["zero_maps"] == zero and verify(config.store) == []


def test_attention_that_overflows_is_refused(store_config: PrecomputeConfig) -> None:
    values = np.array([[1.0, 2.0], [3.0, np.nan]], np.float32)
    with pytest.raises(UserError, match=r"image 8 \(b.png\): the teacher gives attention with the value nan"):
        compute.storable("attention", values, np.dtype("float16"), [(7, "a.png"), (8, "b.png")])
    assert np.array_equal(compute.storable("ig", values[:1], np.dtype("float16"), [(7, "a.png")]), values[:1])


def test_the_engine_is_said_and_that_of_computed_parts_is_kept(store_config: PrecomputeConfig) -> None:
    config, said = dataclasses.replace(store_config, engine="fast"), list[str]()
    source, model = open_images(config.images), checkpoint.load(config.teacher)
    plan, _ = compute.make_plan(config, source, model, "sha", gpu=True, say=said.append)
    assert (plan.engine, plan.quadrature) == ("torch", "riemann_middle") and said == [
        "fast stands for the engine torch here: there are GPUs"
    ]
    kept, _ = compute.make_plan(config, source, model, "sha", gpu=True, begun=("openvino", "riemann_middle"), say=said.append)
    assert kept.engine == "openvino" and len(said) == 1


@pytest.fixture
def homogeneous(store_config: PrecomputeConfig, tmp_path: Path) -> PrecomputeConfig:
    """The settings of a small store of a teacher without biases."""
    spec = dataclasses.replace(checkpoint.load(store_config.teacher).spec, name="homogeneous:2:6x1,8x1")
    checkpoint.save(lively(build(spec, 0)), tmp_path / "teacher", {})
    where = {"teacher": str(tmp_path / "teacher"), "store": str(tmp_path / "store")}
    return dataclasses.replace(store_config, images="shapes:train=30", limit=7, engine="torch", steps=50, precision="float32", **where)


def test_a_homogeneous_teachers_maps_take_one_pass(homogeneous: PrecomputeConfig, tmp_path: Path) -> None:
    """The plan says so, whoever follows it computes at one node, and the maps are those of the reference with 50."""
    make_store(homogeneous)
    by_nodes = dataclasses.replace(homogeneous, engine="captum", store=str(tmp_path / "captum"))
    make_store(by_nodes)
    ours, reference = Store.open(homogeneous.store), Store.open(by_nodes.store)
    assert (ours.plan.quadrature, ours.plan.nodes, ours.plan.path, ours.plan.steps) == ("one pass", 1, "one pass", 50)
    assert (reference.plan.quadrature, reference.plan.nodes, reference.plan.path) == ("gausslegendre", 50, "50 steps")
    for name in ("ig", "logits"):
        np.testing.assert_allclose(ours.column(name), reference.column(name), atol=1e-5 * np.abs(reference.column(name)).max())
    assert np.abs(ours.column("ig_delta")).max() <= 1e-5 * np.abs(ours.column("logits")).max()
    found = store.describe(homogeneous.store)
    assert (found["quadrature"], found["steps"]) == ("one pass", 1) and verify(homogeneous.store) == []


def test_a_store_is_finished_as_it_was_begun(homogeneous: PrecomputeConfig) -> None:
    source, model, said = open_images(homogeneous.images), checkpoint.load(homogeneous.teacher), list[str]()
    plan, _ = compute.make_plan(homogeneous, source, model, "sha", say=said.append)
    assert said == ["the teacher is homogeneous, F(a x) = a F(x), on 7 images: one pass gives each map exactly, --steps is not used"]
    for asked, rule in (("torch", "one pass"), ("fast", "one pass"), ("torch", "riemann_middle")):
        config = dataclasses.replace(homogeneous, engine=asked)
        again, _ = compute.make_plan(config, source, model, "sha", begun=("torch", rule), say=said.append)
        assert again == dataclasses.replace(plan, quadrature=rule) and len(said) == 1
    other = dataclasses.replace(homogeneous, engine="captum", method="input-x-gradient")
    assert compute.make_plan(other, source, model, "sha", begun=("torch", "one pass"))[0].quadrature == "none"


def test_pictures_that_cannot_be_used_do_not_decide_how_maps_are_computed(store_config: PrecomputeConfig) -> None:
    """That all are tried is left to the parts, which name the picture."""
    config = dataclasses.replace(store_config, engine="torch")
    source, spec = open_images(config.images), checkpoint.load(config.teacher).spec
    found = compute.some_images(source, "train", np.array(sorted(BAD)), spec.image_shape, False, spec.scaling)
    assert found.shape == (0, 3, *spec.image_shape)
    model = checkpoint.load(config.teacher)
    assert compute.how_maps_are_computed(config, model, found, False, None, lambda line: None) == ("torch", "riemann_middle")
