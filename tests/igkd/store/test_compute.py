import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from captum.attr import IntegratedGradients
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd import store
from igkd.base.choices import Engine
from igkd.base.errors import UserError
from igkd.base.random_draws import stratified_choice, uniform, validation_mask
from igkd.config.precompute import PrecomputeConfig
from igkd.images import drawn_shapes
from igkd.images.codec import decode, pixel_hash
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.store import Store, compute, verify
from tests.helpers.networks import lively
from tests.helpers.pictures import BAD, LABELS, encoded, write_parquet
from tests.helpers.stores import make_store


def planned(config: PrecomputeConfig) -> tuple[store.Plan, compute.Selection]:
    return compute.make_plan(config, open_images(config.images), checkpoint.load(config.teacher), "sha")


# --- the row of an image is of that image


def test_every_map_is_that_of_its_rows_image(finished: str, store_config: PrecomputeConfig) -> None:
    """Attribute each row's picture by itself, with Captum and nothing of ours in between, and compare: a permutation anywhere shows."""
    model = checkpoint.load(store_config.teacher).double()
    engine = IntegratedGradients(model.from_normalised)
    seen = 0
    for table in Store.open(finished).tables():
        columns = {name: store.to_numpy(table.column(name)) for name in table.column_names}
        for row, data in enumerate(columns["image"]):
            x = model.normalise(torch.from_numpy(decode(data).copy()).permute(2, 0, 1)[None].float() / 255)
            label = int(columns["label"][row])
            attributions, delta = engine.attribute(
                x, torch.zeros_like(x), target=label, n_steps=5, method="gausslegendre", return_convergence_delta=True
            )
            with torch.no_grad():
                logits = model.from_normalised(x)[0].numpy()
                features = model.network.features[:10](x)[0].numpy()
            attention = (features.astype(np.float64) ** 2).mean(axis=0)
            attention /= np.linalg.norm(attention)
            assert np.abs(columns["ig"][row] - attributions[0].abs().sum(dim=0).detach().numpy()).max() < 1e-5
            assert np.abs(columns["logits"][row] - logits).max() < 1e-5
            assert np.abs(columns["attention"][row] - attention).max() < 1e-5
            assert abs(columns["ig_delta"][row] - delta.item()) < 1e-5
            seen += 1
    assert seen == len(LABELS) - len(BAD)


def test_the_maps_of_other_images_would_not_pass(finished: str) -> None:
    """The comparison above can fail: no two rows are within its tolerance of each other."""
    opened = Store.open(finished)
    for name in ("ig", "logits", "attention"):
        values = opened.column(name).reshape(26, -1)
        distance = np.abs(values[:, None] - values[None]).max(axis=2) + np.eye(26)
        assert distance.min() > 1e-4, name


def test_every_row_is_of_the_sources_image_of_that_id(finished: str, parquet_images: str) -> None:
    source, opened = open_images(parquet_images), Store.open(finished)
    ids = opened.column("image_id")
    assert ids.tolist() == [i for i in range(34) if i not in BAD]
    records = {r.image_id: r for r in source.read("train", range(34))}
    assert opened.column("image").tolist() == [records[i].image for i in ids.tolist()]
    assert opened.column("image_sha").tolist() == [pixel_hash(decode(records[i].image)) for i in ids.tolist()]
    assert opened.column("label").tolist() == [LABELS[i] for i in ids.tolist()] == [records[i].label for i in ids.tolist()]
    chosen = validation_mask(LABELS)
    assert chosen.sum() == 3 and opened.column("validation").tolist() == [chosen[i] for i in ids.tolist()]
    samples, validation = opened.samples()
    for row, i in enumerate(samples.ids.tolist()):
        assert np.array_equal(samples.pixels[row].permute(1, 2, 0).numpy(), decode(records[i].image))
        assert samples.labels[row] == LABELS[i] and validation[row] == chosen[i]
    assert samples.ig is not None and np.array_equal(samples.ig.numpy(), opened.column("ig"))


def test_masks_limits_and_float16(teacher: str, tmp_path: Path) -> None:
    """A random choice of the shapes, in half precision: masks belong to their rows, and maps are those of float32 rounded."""
    config = PrecomputeConfig(
        images="shapes:train=60,test=10,seed=4",
        teacher=teacher,
        store=str(tmp_path / "half"),
        steps=3,
        engine="captum",
        limit=11,
        rows_per_file=4,
    )
    make_store(config)
    full = dataclasses.replace(config, store=str(tmp_path / "full"), precision="float32", engine="captum")
    make_store(full)
    half, full_store = Store.open(config.store), Store.open(full.store)
    ids = half.column("image_id")
    assert len(ids) == 11 and sorted(set(ids.tolist())) == ids.tolist() and ids.tolist() != list(range(11))
    assert store.verify(config.store) == [] and half.column("ig").dtype == np.float16
    for row, i in enumerate(ids.tolist()):
        pixels, mask = drawn_shapes.draw(4, "train", i)
        assert np.array_equal(half.column("mask")[row], mask) and half.column("image_sha")[row] == pixel_hash(pixels)
    assert np.array_equal(half.column("ig"), full_store.column("ig").astype(np.float16))
    assert np.array_equal(half.column("logits"), full_store.column("logits"))


def test_the_same_images_give_the_same_bytes(finished: str, store_config: PrecomputeConfig, tmp_path: Path) -> None:
    again = dataclasses.replace(store_config, store=str(tmp_path / "again"))
    make_store(again, torch.float64)
    assert {p.name: p.read_bytes() for p in Path(again.store).iterdir()} == {p.name: p.read_bytes() for p in Path(finished).iterdir()}
    (tmp_path / "again" / store.part_name(1)).unlink()
    (tmp_path / "again" / "manifest.json").unlink()
    make_store(again, torch.float64)
    assert {p.name: p.read_bytes() for p in Path(again.store).iterdir()} == {p.name: p.read_bytes() for p in Path(finished).iterdir()}


def test_pictures_of_mixed_sizes_are_attributed_as_they_are_read_back(teacher: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [encoded(rng.integers(0, 256, (20 + 7 * i, 64 - 5 * i, 3), dtype=np.uint8)) for i in range(6)]
    path = write_parquet(tmp_path / "train-0.parquet", images, [9, 8, 7, 6, 5, 4], drawn_shapes.CLASSES)
    config = PrecomputeConfig(
        images=f"parquet:{path}", teacher=teacher, store=str(tmp_path / "s"), steps=2, precision="float32", engine="captum"
    )
    with pytest.raises(UserError, match="20x64 pixels, the teacher .* was trained on 32x32; --image-size 32"):
        planned(config)
    make_store(dataclasses.replace(config, image_size=32))
    opened = Store.open(config.store)
    assert store.verify(config.store) == [] and opened.column("image").tolist() == images
    samples, _ = opened.samples()
    assert samples.shape == (32, 32) and samples.logits is not None
    with torch.no_grad():
        alone = torch.cat([checkpoint.load(teacher)(p[None].float() / 255) for p in samples.pixels])
    assert torch.allclose(alone, samples.logits, atol=1e-5)


# --- what cannot be computed is refused before or by name


def test_bad_images_are_refused_by_default_and_named(store_config: PrecomputeConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image 5 \(5.png row 5\) does not decode .*--bad-images skip"):
        make_store(dataclasses.replace(store_config, bad_images="refuse", store=str(tmp_path / "s")))
    assert not list((tmp_path / "s").glob("part-*")) and not (tmp_path / "s" / "manifest.json").exists()


def test_skipped_images_are_in_the_manifest(finished: str) -> None:
    skipped = Store.open(finished).manifest["skipped"]
    assert [s["image_id"] for s in skipped] == list(BAD)
    assert all(s["name"].endswith(".parquet row 3") or "png row" in s["name"] for s in skipped)
    assert [s["reason"] for s in skipped] == [
        "does not decode (not a picture in a format PIL reads)" if i % 2 else "has no bytes" for i in BAD
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "--steps and --limit must be at least 1"),
        ({"limit": 0}, "--steps and --limit must be at least 1"),
        ({"rows_per_file": 0}, "--rows-per-file must be at least 1"),
        ({"student": "mobilenet:cut=4"}, "cut 4 is not one of 0, 3, 5, 7"),
        ({"split": "test"}, r"no test-\*.parquet"),
    ],
)
def test_impossible_settings(store_config: PrecomputeConfig, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(dataclasses.replace(store_config, **changes))


def test_a_teacher_that_is_cut_itself(store_config: PrecomputeConfig, tmp_path: Path) -> None:
    """It lacks the layer whose attention the paper's students compare; another of equal size is taken."""
    spec = dataclasses.replace(checkpoint.load(store_config.teacher).spec, name="mobilenet:cut=11,width=0.1")
    checkpoint.save(build(spec, 0), tmp_path / "t", {})
    plan, _ = planned(dataclasses.replace(store_config, teacher=str(tmp_path / "t")))
    assert plan.attention_layer is not None and plan.attention_layer != "features.9" and min(plan.attention_shape) > 1


def test_a_teacher_of_other_classes(store_config: PrecomputeConfig, tmp_path: Path) -> None:
    for classes, words in ((("a", "b"), "knows 2 classes, .* has 10; train a teacher"), (tuple("abcdefghij"), "knows other classes")):
        spec = NetworkSpec(classes=classes, image_shape=(32, 32), name="mobilenet:width=0.35")
        checkpoint.save(build(spec, 0), tmp_path / "t", {})
        with pytest.raises(UserError, match=words):
            planned(dataclasses.replace(store_config, teacher=str(tmp_path / "t")))


def test_another_plan_is_another_store(finished: str, store_config: PrecomputeConfig) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in Path(finished).iterdir()}
    for changes, words in (
        ({"steps": 6}, "steps was 5 and is now 6"),
        ({"student": "mobilenet:cut=9"}, "attention_layer was 'features.9' and is now 'features.4'"),
    ):
        with pytest.raises(UserError, match=words):
            make_store(dataclasses.replace(store_config, **changes))
    assert {p.name: p.stat().st_mtime_ns for p in Path(finished).iterdir()} == before


def test_a_part_that_arrives_torn_is_not_written(store_config: PrecomputeConfig, tmp_path: Path) -> None:
    plan, selection = planned(store_config)
    model = checkpoint.load(store_config.teacher)
    chosen = selection.part(plan, 0)
    rows = compute.attribute_rows(
        model, compute.plan_attributor(model, plan), plan, compute.read_rows(open_images(store_config.images), plan, chosen)
    )
    torn = {name: column[:-1] for name, column in rows.items()}
    with pytest.raises(UserError, match="part 0 arrived with 6 of 7 rows"):
        compute.write_rows(str(tmp_path), plan, 0, chosen.ids, torn)
    with pytest.raises(UserError, match="part 0 arrived with image 4 in the place of 40"):
        compute.write_rows(str(tmp_path), plan, 0, np.where(chosen.ids == 4, 40, chosen.ids), rows)
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_one_good_image(teacher: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train-0.parquet", [None] * 3, [0, 1, 2], drawn_shapes.CLASSES)
    config = PrecomputeConfig(images=f"parquet:{path}", teacher=teacher, store=str(tmp_path / "s"), bad_images="skip")
    with pytest.raises(UserError, match="none of 3 images decodes"):
        planned(config)


def test_parts_cover_the_selection(teacher: str) -> None:
    config = PrecomputeConfig(images="shapes:train=101,test=5", teacher=teacher, store="s", engine="captum", limit=40, rows_per_file=7)
    plan, selection = planned(config)
    parts = [selection.part(plan, part) for part in range(plan.parts)]
    assert plan.parts == 6 and [len(p.ids) for p in parts] == [7] * 5 + [5]
    assert np.concatenate([p.ids for p in parts]).tolist() == selection.ids.tolist()
    assert np.concatenate([p.validation for p in parts]).tolist() == selection.validation.tolist()
    everything = validation_mask(open_images(config.images).labels("train"))
    assert selection.validation.tolist() == everything[selection.ids].tolist()
    assert store.ids_hash(selection.ids) == plan.ids_sha256
    assert not planned(dataclasses.replace(config, split="test"))[1].validation.any()


def test_a_limited_store_has_its_share_of_validation(teacher: str) -> None:
    config = PrecomputeConfig(images="shapes:train=100,test=5", teacher=teacher, store="s", engine="captum", limit=40)
    assert planned(config)[1].validation.sum() == 4


# --- choices

labels = st.lists(st.integers(0, 6), max_size=300).map(lambda x: np.array(x, dtype=np.int64))


@settings(max_examples=100, deadline=None)
@given(labels, st.data())
def test_a_stratified_choice_is_exact(groups: np.ndarray, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(groups)))
    chosen = stratified_choice(groups, size, 3, "p")
    assert chosen.shape == groups.shape and chosen.sum() == size
    assert np.array_equal(chosen, stratified_choice(groups, size, 3, "p"))
    relabelled = stratified_choice(groups * 5 + 2, size, 3, "p")
    assert np.array_equal(relabelled, chosen)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.data())
def test_equal_classes_have_equal_shares(classes: int, each: int, data: st.DataObject) -> None:
    groups = np.array(data.draw(st.permutations(list(range(classes)) * each)))
    size = data.draw(st.integers(0, len(groups)))
    counts = np.bincount(groups[stratified_choice(groups, size, 0, "limit")], minlength=classes)
    assert counts.sum() == size and np.abs(counts - size / classes).max() < 1


@settings(max_examples=100, deadline=None)
@given(labels, st.data())
def test_unequal_classes_have_their_shares(groups: np.ndarray, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(groups)))
    share = np.bincount(groups, minlength=7) * size / max(1, len(groups))
    counts = np.bincount(groups[stratified_choice(groups, size, 0, "limit")], minlength=7)
    assert np.abs(counts - share).max(initial=0) < 1 + 1e-9


def test_one_large_class_among_many_small_ones_has_its_share() -> None:
    groups = np.concatenate([np.zeros(1000, np.int64), np.arange(1, 1001)])
    assert abs(int(stratified_choice(groups, 400, 0, "limit")[:1000].sum()) - 200) <= 1


@pytest.mark.parametrize(("each", "expected"), [(5000, 500), (100, 10), (7000, 500)])
def test_validation_is_a_tenth_and_at_most_5000(each: int, expected: int) -> None:
    truth = np.tile(np.arange(10), each)
    chosen = validation_mask(truth)
    assert np.bincount(truth[chosen]).tolist() == [expected] * 10
    assert np.array_equal(chosen, validation_mask(truth))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=50), st.integers(0, 2**40), st.data())
def test_a_number_depends_on_its_own_id_only(ids: list[int], seed: int, data: st.DataObject) -> None:
    whole = dict(zip(ids, uniform(seed, "flip", np.array(ids)).tolist(), strict=True))
    some = data.draw(st.lists(st.sampled_from(ids)))
    assert uniform(seed, "flip", np.array(some, dtype=np.int64)).tolist() == [whole[i] for i in some]


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
