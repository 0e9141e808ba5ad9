"""The teacher's logits of crops, through Ray Data: at once or afterwards, killed, damaged, repaired."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from igkd.base.errors import UserError
from igkd.config.precompute import PrecomputeConfig
from igkd.networks import checkpoint
from igkd.networks.network import build
from igkd.store import Store, verify
from jobs.precompute import precompute_store
from tests.helpers.paths import IMAGES, ROOT


def configure(teacher: str, store: Path, **changes: Any) -> PrecomputeConfig:
    settings = {"images": IMAGES, "limit": 20, "steps": 2, "engine": "torch", "rows_per_file": 7, "views": "all", "padding": 1}
    return PrecomputeConfig(teacher=teacher, store=str(store), **settings | changes)


def digests(store: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(store.iterdir())}


@pytest.fixture(scope="module")
def at_once(cluster: None, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was given its views in the same command."""
    path = tmp_path_factory.mktemp("views") / "store"
    precompute_store(configure(teacher, path))
    return path


def test_views_afterwards_are_views_at_once(at_once: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precompute_store(configure(teacher, tmp_path / "store", views="none"))
    bare = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    assert len(bare) == 3 + 2 and Store.open(str(tmp_path / "store")).views is None
    capsys.readouterr()
    precompute_store(configure(teacher, tmp_path / "store"))
    out = capsys.readouterr().out
    assert "already finished: 20 rows" in out and "logits of 18 crops of each image" in out and "views of 20/20 images" in out
    assert digests(tmp_path / "store") == digests(at_once) and verify(str(tmp_path / "store")) == []
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    assert {name: after[name] for name in bare} == bare, "the maps were left alone"
    precompute_store(configure(teacher, tmp_path / "store"))
    assert "has its views and is already finished" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()} == after


def test_resized_crops(at_once: Path, teacher: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(at_once, tmp_path / "copy"))
    for path in copy.glob("views-*"):
        path.unlink()
    precompute_store(configure(teacher, copy, views="3", crop="resized"))
    plan = Store.open(str(copy)).views
    assert plan is not None and plan.resized and plan.places == (3,) and verify(str(copy)) == []
    with pytest.raises(UserError, match=r"views of other settings \(.*resized was True and is now None"):
        precompute_store(configure(teacher, copy, views="3", crop="padded"))


def test_lost_and_damaged_views_are_computed_again_and_only_they(
    at_once: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(at_once, tmp_path / "copy"))
    (copy / "views-manifest.json").unlink()
    (copy / "views-00002.parquet").unlink()
    (copy / ".views-00001.parquet.0a0a.tmp").write_bytes(b"of a killed writer")
    precompute_store(configure(teacher, copy))
    assert "kept 14 of 20 rows (2 of 3 parts)" in capsys.readouterr().out and digests(copy) == digests(at_once)
    data = bytearray((copy / "views-00001.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "views-00001.parquet").write_bytes(data)
    (copy / "views-manifest.json").unlink()
    with pytest.raises(UserError, match=r"views-00001.parquet is damaged .*--repair computes it anew"):
        precompute_store(configure(teacher, copy))
    precompute_store(configure(teacher, copy, views="none", repair=True))  # what the store was given is repaired, asked for or not
    assert digests(copy) == digests(at_once)


def test_views_that_do_not_fit_the_store_are_refused_before_anything_is_computed(at_once: Path, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"views of other settings \(padding was 1 and is now 2\); leave --views out, or delete its views-\* files"
    ):
        precompute_store(configure(teacher, at_once, padding=2))
    with pytest.raises(UserError, match="must be all, none, or a number"):
        precompute_store(configure(teacher, tmp_path / "store", views="many"))
    assert not (tmp_path / "store").exists()
    checkpoint.save(build(checkpoint.load(teacher).spec, seed=2), tmp_path / "other", {})
    with pytest.raises(UserError, match="other settings .*teacher was"):
        precompute_store(configure(str(tmp_path / "other"), at_once))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_of_the_views_ends_with_the_same_bytes(
    at_once: Path, teacher: str, tmp_path: Path, kind: signal.Signals, run_job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = tmp_path / "store"
    arguments = ["--images", IMAGES, "--teacher", teacher, "--store", str(out), "--limit", "20"]
    arguments += ["--steps", "2", "--engine", "torch", "--rows-per-file", "7", "--views", "all", "--padding", "1"]
    command = [sys.executable, "-m", "jobs.precompute", *arguments]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while first.poll() is None and not list(out.glob("views-*.parquet")):
        time.sleep(0.02)
    first.send_signal(kind)
    _, errors = first.communicate(timeout=120)
    assert kind == signal.SIGKILL or (first.returncode == 130 and "the same command continues" in errors)
    assert run_job("precompute", *arguments).returncode == 0
    assert digests(out) == digests(at_once)
