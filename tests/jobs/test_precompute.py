"""The whole path through Ray Data: every row is the one that Captum gives for that very image."""

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
import ray.data
import torch
from captum.attr import IntegratedGradients
from PIL import Image

from igkd.attribution.attention import attention_map
from igkd.base.errors import UserError
from igkd.base.random_draws import validation_mask
from igkd.config.distill import DistillConfig
from igkd.images import drawn_shapes
from igkd.images.codec import decode, pixel_hash
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build
from igkd.store import Store, verify
from igkd.store.compute import Rows, make_plan
from igkd.training.student_data import open_store
from jobs.backend.stages import Attribute
from jobs.precompute import fill_store, precompute_store
from tests.helpers.paths import IMAGES
from tests.helpers.pictures import pictures
from tests.helpers.precomputing import STEPS, configure, digests
from tests.helpers.programs import Program


def test_every_row_is_captums_own_result_for_its_image(store: Path, teacher: str) -> None:
    """Fails if rows were permuted anywhere between image and file, or batched with influence on each other."""
    network = checkpoint.load(teacher)
    engine = IntegratedGradients(network.from_normalised)
    labels = open_images(IMAGES).labels("train")
    rows = [row for table in Store.open(str(store)).tables() for row in zip(*(table.column(i).to_pylist() for i in range(10)), strict=True)]
    assert len(rows) == 40
    for image_id, sha, image, label, validation, ig, delta, logits, attention, mask in rows:
        pixels, truth = drawn_shapes.draw(0, "train", image_id)
        assert np.array_equal(decode(image), pixels)
        assert sha == pixel_hash(pixels)
        assert label == labels[image_id]
        assert validation == validation_mask(labels)[image_id]
        assert np.array_equal(np.reshape(mask, (32, 32)), truth)
        x = network.normalise(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255)
        expected, error = engine.attribute(x, torch.zeros_like(x), target=label, n_steps=STEPS, return_convergence_delta=True)
        assert expected.abs().sum(1).max() > 1e-2  # not so faint that a difference could hide
        assert np.abs(np.reshape(ig, (32, 32)) - expected.abs().sum(1)[0].detach().numpy()).max() < 1e-5
        assert abs(delta - error.item()) < 1e-4
        with torch.no_grad():
            assert np.abs(np.array(logits) - network.from_normalised(x)[0].numpy()).max() < 1e-5
            tapped = attention_map(network.network.features[:10](x))[0]
        assert np.abs(np.reshape(attention, tapped.shape) - tapped.numpy()).max() < 1e-5


def test_store_is_sound_and_complete(store: Path) -> None:
    assert verify(str(store)) == []
    assert len(digests(store)) == 6 + 2  # 40 rows in sevens; plan and manifest


class MeetingAttribute(Attribute):
    """Leaves a file named after the process that it runs in, and gives another one half a minute to come before it works."""

    def attributed(self, rows: Rows) -> Rows:
        place, deadline = Path(self.plan.images), time.monotonic() + 30
        (place / str(os.getpid())).touch()
        while len(list(place.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        return super().attributed(rows)


def test_every_processor_attributes(cluster: None, teacher: str, tmp_path: Path) -> None:
    config, source, model = configure(teacher, tmp_path / "store", limit=40), open_images(IMAGES), checkpoint.load(teacher)
    plan, selection = make_plan(config, source, model, "teacher")
    (tmp_path / "pids").mkdir()
    fill_store(config, source, model, dataclasses.replace(plan, images=str(tmp_path / "pids")), selection, MeetingAttribute)
    assert len(list((tmp_path / "pids").iterdir())) == 2


class PatientAttribute(Attribute):
    """Finishes the second part only when the third one is in the store; gives up after a minute."""

    uri: str

    def attributed(self, rows: Rows) -> Rows:
        deadline = time.monotonic() + 60
        while rows["part"][0] == 1 and not (Path(self.uri) / "part-00002.parquet").exists():
            if time.monotonic() > deadline:
                raise UserError("the second wave waits for the last part of the first")
            time.sleep(0.1)
        return super().attributed(rows)


def test_a_wave_does_not_wait_for_the_last_part_of_the_one_before(
    cluster: None, store: Path, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.precompute.PARTS_AT_ONCE", 2)
    config, source, model = configure(teacher, tmp_path / "store", limit=40), open_images(IMAGES), checkpoint.load(teacher)
    plan, selection = make_plan(config, source, model, checkpoint.checkpoint_card(teacher)["sha256"])
    patient = type("Patient", (PatientAttribute,), {"uri": str(tmp_path / "store")})
    fill_store(config, source, model, plan, selection, patient)
    assert digests(tmp_path / "store") == digests(store)


def test_store_of_another_teacher_or_setting_is_refused(cluster: None, store: Path, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="steps was 10 and is now 11"):
        precompute_store(configure(teacher, store, limit=40, steps=11))
    other = build(checkpoint.load(teacher).spec, seed=2)
    checkpoint.save(other, tmp_path / "other", {})
    with pytest.raises(UserError, match="other settings .*teacher was"):
        precompute_store(configure(str(tmp_path / "other"), store, limit=40))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Ten classes of three images, one of which is no image."""
    for label, name in enumerate(drawn_shapes.CLASSES):
        directory = tmp_path / "images" / "train" / f"{label}-{name}"
        directory.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(drawn_shapes.draw(0, "train", 10 * i + label)[0]).save(directory / f"{i}.png")
    (tmp_path / "images" / "train" / "3-star" / "1.png").write_bytes(b"this is no image")
    return f"folder:{tmp_path / 'images'}"


def test_image_that_does_not_decode_is_named_and_refused_or_left_out(cluster: None, folder: str, tmp_path: Path) -> None:
    spec = NetworkSpec(classes=open_images(folder).classes, image_shape=(32, 32), name="mobilenet:width=0.35")
    checkpoint.save(build(spec, seed=0), tmp_path / "teacher", {})
    bad = next(i for i, r in enumerate(open_images(folder).read("train", range(30))) if b"no image" in r.image)
    with pytest.raises(UserError) as caught:
        precompute_store(configure(str(tmp_path / "teacher"), tmp_path / "refused", images=folder))
    said = str(caught.value)
    assert "\n" not in said and f"image {bad} " in said and "1.png" in said and "--bad-images skip" in said
    assert not (tmp_path / "refused" / "manifest.json").exists()

    manifest = precompute_store(configure(str(tmp_path / "teacher"), tmp_path / "skipped", images=folder, bad_images="skip"))
    assert manifest["rows"] == 29
    assert [s["image_id"] for s in manifest["skipped"]] == [bad]
    assert verify(str(tmp_path / "skipped")) == []


def test_a_part_larger_than_a_block_of_ray_data_is_not_split(
    cluster: None, teacher: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data cuts what a task gives into blocks of 128 MiB, which a few large pictures exceed."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 1000)
    precompute_store(configure(teacher, tmp_path / "store", limit=40))
    assert digests(tmp_path / "store") == digests(store)


def test_a_store_goes_on_with_the_fast_engine_that_it_was_begun_with(
    cluster: None, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = precompute_store(configure(teacher, tmp_path / "store", limit=14, engine="torch"))
    (tmp_path / "store" / "manifest.json").unlink()
    (tmp_path / "store" / "part-00001.parquet").unlink()
    assert precompute_store(configure(teacher, tmp_path / "store", limit=14, engine="fast")) == whole
    assert "kept 7 of 14 rows" in capsys.readouterr().out
    with pytest.raises(UserError, match="engine was 'torch' and is now 'captum'"):
        precompute_store(configure(teacher, tmp_path / "store", limit=14, engine="captum"))


def test_a_store_of_another_method_names_it_and_its_setting_is_kept(cluster: None, teacher: str, tmp_path: Path) -> None:
    precompute_store(configure(teacher, tmp_path / "store", limit=7, method="input-x-gradient"))
    plan = Store.open(str(tmp_path / "store")).plan
    assert (plan.method, plan.engine, plan.quadrature) == ("input-x-gradient", "captum", "none")
    with pytest.raises(UserError, match=r"other settings \(method was 'input-x-gradient' and is now 'ig'"):
        precompute_store(configure(teacher, tmp_path / "store", limit=7))


def test_a_timm_teacher_and_large_images(cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """1,000 classes at 224x224; the attention is that of layers of equal size, and OpenVINO cannot differentiate this teacher."""
    rng = np.random.default_rng(0)
    for number in range(1000):
        directory = tmp_path / "images" / "train" / f"{number:04d}"
        directory.mkdir(parents=True)
        if number % 250 == 0:
            Image.fromarray(rng.integers(0, 256, (240, 230, 3), np.uint8)).save(directory / "x.png")
    settings = {"images": f"folder:{tmp_path / 'images'}", "steps": 2, "image_size": 224, "engine": "fast"}
    teacher = "timm:convnextv2_atto,weights=none,seed=1"
    with pytest.raises(UserError, match="--engine openvino cannot compute maps of this network: it fails") as caught:
        precompute_store(configure(teacher, tmp_path / "store", **settings | {"engine": "openvino"}))
    assert not (tmp_path / "store").exists() and "\n" not in str(caught.value)
    precompute_store(configure(teacher, tmp_path / "store", **settings))
    assert "precompute: fast stands for the engine torch here: openvino" in capfd.readouterr().out
    opened = Store.open(str(tmp_path / "store"))
    assert verify(opened.uri) == [] and opened.plan.attention_shape == (28, 28) and opened.plan.attention_layer == "stages.1"
    assert opened.column("ig").shape == (4, 224, 224) and opened.column("logits").shape == (4, 1000)
    assert opened.column("label").tolist() == [0, 250, 500, 750]
    samples, _ = opened.samples()
    assert samples.signals["attention"].shape == (4, 28, 28)
    open_store(DistillConfig(store=opened.uri, test_images="shapes", out="o", arm="at"))


def test_a_torchvision_teacher_that_is_none_is_refused(tmp_path: Path) -> None:
    for text, words in [
        ("torchvision:nonet", "no classifier 'nonet'; it has .*mobilenet_v2"),
        ("torchvision:resnet18,colour=red", "at most weights=FILE, weights=default, or weights=none and seed=N"),
    ]:
        with pytest.raises(UserError, match=words):
            precompute_store(configure(text, tmp_path / "store"))


def test_names_of_left_out_pictures_do_not_control_the_terminal(cluster: None, run_job: Program, tmp_path: Path) -> None:
    """In a teacher's first lines and in those of its store."""
    images = pictures(tmp_path, "train", 40)
    pictures(tmp_path, "test", 10)
    for split in ("train", "test"):
        bad = next((tmp_path / split).rglob("001.png"))
        bad.with_name("bad\x1b[2J.png").write_bytes(b"no picture")
    given = ["--images", images, "--bad-images", "skip"]
    done = run_job("teacher", *given, "--network", "lean:2:8x1", "--epochs", "1", "--batch-size", "8", "--out", str(tmp_path / "t"))
    assert done.returncode == 0 and "bad\ufffd[2J.png" in done.stdout and "\x1b[2J" not in done.stdout, done.stdout + done.stderr
    done = run_job("precompute", *given, "--teacher", str(tmp_path / "t"), "--steps", "1", "--store", str(tmp_path / "s"))
    assert done.returncode == 0 and "bad\ufffd[2J.png" in done.stdout and "\x1b[2J" not in done.stdout, done.stdout + done.stderr
