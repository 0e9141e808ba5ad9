"""The whole path through Ray Data: every row is the one that Captum gives for that very image."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.data
import torch
from captum.attr import IntegratedGradients
from PIL import Image

from igkd.attribution import choose_engine
from igkd.attribution.attention import attention_map
from igkd.base.errors import UserError
from igkd.base.random_draws import validation_mask
from igkd.config.distill import DistillConfig
from igkd.config.precompute import PrecomputeConfig
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
from tests.helpers.paths import IMAGES, ROOT
from tests.helpers.programs import run_program

STEPS = 10


def configure(teacher: str, store: Path, **changes: object) -> PrecomputeConfig:
    settings: dict[str, object] = {
        "images": IMAGES,
        "steps": STEPS,
        "engine": "captum",
        "precision": "float32",
        "rows_per_file": 7,
    } | changes
    return PrecomputeConfig(teacher=teacher, store=str(store), **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(cluster: None, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("precompute") / "store"
    precompute_store(configure(teacher, path, limit=40))
    return path


def digests(store: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(store.iterdir())}


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


def test_lost_part_is_computed_again_and_only_that(
    cluster: None, store: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a driver killed at some moment leaves: some parts, no manifest."""
    before = digests(store)
    kept = store / "part-00001.parquet"
    written = kept.stat().st_mtime_ns
    (store / "part-00003.parquet").unlink()
    (store / "manifest.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        Store.open(str(store))
    precompute_store(configure(teacher, store, limit=40))
    assert digests(store) == before
    assert kept.stat().st_mtime_ns == written
    out = capsys.readouterr().out
    assert "precompute: kept 33 of 40 rows (5 of 6 parts)" in out and "precompute: 7 images, 10 steps, 1 parts" in out


def times(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.glob("part-*")}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_part_is_refused_by_name_and_repaired(
    cluster: None, store: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unfinished: nothing but the part itself can tell."""
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / "manifest.json").unlink()
    (copy / ".part-00004.parquet.0a0a.tmp").write_bytes(b"of a killed writer")
    (copy / "part-00000.parquet").unlink()
    flip(copy / "part-00002.parquet")
    before = times(copy)
    with pytest.raises(UserError, match=r"part-00002.parquet is damaged \(.*the same command with --repair computes it anew \(1 part"):
        precompute_store(configure(teacher, copy, limit=40))
    assert times(copy) == before and not (copy / "manifest.json").exists()
    capsys.readouterr()
    precompute_store(configure(teacher, copy, limit=40, repair=True))
    out = capsys.readouterr().out
    assert "part-00002.parquet is damaged" in out and "kept 26 of 40 rows (4 of 6 parts)" in out and "14 images, 10 steps, 2 parts" in out
    assert digests(copy) == digests(store)
    after = times(copy)
    assert {name for name in after if after[name] != before.get(name)} == {"part-00000.parquet", "part-00002.parquet"}


def test_a_finished_store_is_repaired(cluster: None, store: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished: the manifest's sha256 tells, also of a part that is sound in itself."""
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    flip(copy / "part-00003.parquet")
    table = pq.read_table(copy / "part-00001.parquet")
    pq.write_table(table, copy / "part-00001.parquet", compression="gzip")
    before = times(copy)
    precompute_store(configure(teacher, copy, limit=40))  # a finished store is finished: nothing is read
    assert times(copy) == before
    precompute_store(configure(teacher, copy, limit=40, repair=True))
    out = capsys.readouterr().out
    assert "part-00001.parquet is damaged (its sha256 is not the manifest's)" in out and "part-00003.parquet is damaged" in out
    assert digests(copy) == digests(store) and verify(str(copy)) == []
    after = times(copy)
    assert {name for name in after if after[name] != before[name]} == {"part-00001.parquet", "part-00003.parquet"}
    whole = times(copy) | {"manifest.json": (copy / "manifest.json").stat().st_mtime_ns}
    precompute_store(configure(teacher, copy, limit=40, repair=True))  # nothing to repair: nothing is touched
    assert times(copy) | {"manifest.json": (copy / "manifest.json").stat().st_mtime_ns} == whole
    assert "kept 40 of 40 rows (6 of 6 parts)" in capsys.readouterr().out


def test_a_manifest_that_is_damaged_is_written_anew(cluster: None, store: Path, teacher: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / "manifest.json").write_text("{")
    before = times(copy)
    precompute_store(configure(teacher, copy, limit=40))
    assert digests(copy) == digests(store) and times(copy) == before


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


@pytest.fixture(scope="module")
def fast_store(cluster: None, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("precompute") / "fast"
    precompute_store(configure(teacher, path, limit=21, engine="fast"))
    return path


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.slow
def test_no_deadlock_and_the_same_bytes_on_any_number_of_processors(
    teacher: str, store: Path, fast_store: Path, tmp_path: Path, cpus: int
) -> None:
    stores = {"captum": (store, 40), "fast": (fast_store, 21)}
    configs = [dataclasses.asdict(configure(teacher, tmp_path / engine, limit=n, engine=engine)) for engine, (_, n) in stores.items()]
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = run_program("tests.helpers.on_ray", [str(cpus), *map(json.dumps, configs)], alone)
    assert done.returncode == 0, done.stderr
    for engine, (theirs, _) in stores.items():
        assert parts(tmp_path / engine) == parts(theirs)


def parts(store: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(store).items() if name.startswith("part")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_leaves_nothing_half_and_goes_on(
    teacher: str, store: Path, tmp_path: Path, kind: signal.Signals, run_job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = tmp_path / "store"
    arguments = ["--images", IMAGES, "--teacher", teacher, "--store", str(out), "--limit", "40"]
    arguments += ["--steps", str(STEPS), "--engine", "captum", "--precision", "float32", "--rows-per-file", "7"]
    command = [sys.executable, "-m", "jobs.precompute", *arguments]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while first.poll() is None and not list(out.glob("part-*.parquet")):
        time.sleep(0.05)
    first.send_signal(kind)
    _, errors = first.communicate(timeout=120)
    if kind == signal.SIGINT:
        assert first.returncode == 130, errors
        assert "the same command continues" in errors
    done = run_job("precompute", *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(r"kept \d+ of 40 rows \(\d of 6 parts\)", done.stdout)
    assert digests(out) == digests(store)
    assert verify(str(out)) == []


def test_a_second_job_on_one_store_stops_with_a_clear_message(cluster: None, teacher: str, tmp_path: Path) -> None:
    program = "import sys, time\nfrom igkd.store import hold\nwith hold(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "store")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"is being computed by another job \(process {holder.pid} on .*wait for it, or stop it first"):
            precompute_store(configure(teacher, tmp_path / "store", limit=14))
        assert not list((tmp_path / "store").glob("part-*"))
    finally:
        holder.kill()
        holder.wait()
    precompute_store(configure(teacher, tmp_path / "store", limit=14))  # the killed job's lease hinders nobody
    assert verify(str(tmp_path / "store")) == []


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


def test_the_fast_engine_on_the_whole_path(fast_store: Path, teacher: str) -> None:
    opened = Store.open(str(fast_store))
    assert (opened.plan.engine, opened.plan.quadrature) == (choose_engine("fast", "ig", gpu=False), "riemann_middle")
    network, labels = checkpoint.load(teacher), open_images(IMAGES).labels("train")
    cosines = []
    for image_id, ig in zip(opened.column("image_id").tolist(), opened.column("ig"), strict=True):
        x = network.normalise(torch.from_numpy(drawn_shapes.draw(0, "train", image_id)[0].copy()).permute(2, 0, 1)[None].float() / 255)
        attributions = IntegratedGradients(network.from_normalised).attribute(
            x, torch.zeros_like(x), target=int(labels[image_id]), n_steps=STEPS, method="riemann_middle"
        )
        expected = attributions.abs().sum(1).flatten().detach().double()
        cosines.append(float(torch.nn.functional.cosine_similarity(expected, torch.from_numpy(ig).flatten().double(), dim=0)))
    # With random weights and few steps, rounding at one corner of ReLU6 shows in a single image.
    assert min(cosines) > 0.999 and np.mean(cosines) > 0.9998


def test_a_store_of_another_method_names_it_and_its_setting_is_kept(cluster: None, teacher: str, tmp_path: Path) -> None:
    precompute_store(configure(teacher, tmp_path / "store", limit=7, method="input-x-gradient"))
    plan = Store.open(str(tmp_path / "store")).plan
    assert (plan.method, plan.engine, plan.quadrature) == ("input-x-gradient", "captum", "none")
    with pytest.raises(UserError, match=r"other settings \(method was 'input-x-gradient' and is now 'ig'"):
        precompute_store(configure(teacher, tmp_path / "store", limit=7))


def test_a_torchvision_teacher_and_large_images(cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """1,000 classes at 224x224; the attention is that of layers of equal size, and OpenVINO cannot differentiate this teacher."""
    rng = np.random.default_rng(0)
    for number in range(1000):
        directory = tmp_path / "images" / "train" / f"{number:04d}"
        directory.mkdir(parents=True)
        if number % 250 == 0:
            Image.fromarray(rng.integers(0, 256, (240, 230, 3), np.uint8)).save(directory / "x.png")
    settings = {"images": f"folder:{tmp_path / 'images'}", "steps": 2, "image_size": 224, "engine": "fast"}
    teacher = "torchvision:shufflenet_v2_x0_5,weights=none,seed=1"
    with pytest.raises(UserError, match="--engine openvino cannot compute maps of this network: it fails") as caught:
        precompute_store(configure(teacher, tmp_path / "store", **settings | {"engine": "openvino"}))
    assert not (tmp_path / "store").exists() and "\n" not in str(caught.value)
    precompute_store(configure(teacher, tmp_path / "store", **settings))
    assert "precompute: fast stands for the engine torch here: openvino" in capfd.readouterr().out
    opened = Store.open(str(tmp_path / "store"))
    assert verify(opened.uri) == [] and opened.plan.attention_shape == (28, 28) and opened.plan.attention_layer == "stage2"
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
