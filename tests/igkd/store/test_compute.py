"""The rows of a store are those of its images; and what cannot be computed is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from igkd import store
from igkd.base.errors import UserError
from igkd.base.random_draws import validation_mask
from igkd.config.precompute import PrecomputeConfig
from igkd.images import drawn_shapes
from igkd.images.codec import decode, pixel_hash, scale_mask
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build
from igkd.store import Store, compute
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


def test_a_mask_is_scaled_where_its_picture_is_and_only_there(tmp_path: Path) -> None:
    """A teacher that scales pictures to a larger side and cuts out the middle, on pictures of its size, which are left as they are."""
    spec = NetworkSpec(classes=drawn_shapes.CLASSES, image_shape=(32, 32), name="lean:2:8x1", short_side=64, interpolation="bilinear")
    checkpoint.save(build(spec, 0), tmp_path / "teacher", {})
    given = {"images": "shapes:train=12,test=4,seed=4", "teacher": str(tmp_path / "teacher"), "steps": 1, "engine": "torch"}
    for name, size in (("as they are", None), ("scaled", 32)):
        config = PrecomputeConfig(**given, store=str(tmp_path / name), image_size=size)  # type: ignore[arg-type]
        make_store(config)
        opened = Store.open(config.store)
        pixels, mask = drawn_shapes.draw(4, "train", int(opened.column("image_id")[0]))
        expected = mask if size is None else scale_mask(mask.astype(bool), (32, 32), spec.scaling)
        assert np.array_equal(opened.column("mask")[0], expected) and opened.plan.resize == (size is not None)
