"""jobs.precompute goes on where it was stopped, repairs what is damaged, and ends with the same bytes on any number of processors."""

import dataclasses
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
import torch
from captum.attr import IntegratedGradients

from igkd.attribution import choose_engine
from igkd.base.errors import UserError
from igkd.images import drawn_shapes
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.store import Store, verify
from jobs.precompute import precompute_store
from tests.helpers.paths import IMAGES, ROOT
from tests.helpers.precomputing import STEPS, configure, digests
from tests.helpers.programs import run_program


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
