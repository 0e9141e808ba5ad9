"""Grids and searches on real Ray Tune, and what they leave."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from igkd.base.errors import UserError
from igkd.base.run_directory import STATE
from igkd.config.distill import DistillConfig
from igkd.config.recipes import distill_config
from igkd.config.sweeps import AblateConfig, TuneConfig
from igkd.networks import checkpoint
from igkd.networks.initial import init_hash
from igkd.store import Store
from igkd.sweeps.grid import cells, settled
from igkd.sweeps.ledger import read_rows, read_status
from igkd.training.identity import decided
from jobs.ablate import ablate
from jobs.backend.cells import claim, claim_search
from jobs.distill import distill
from jobs.tune import base_of, tune
from tests.helpers.paths import IMAGES
from tests.helpers.pictures import pictures
from tests.helpers.programs import Program
from tests.helpers.stores import add_views
from tests.helpers.sweep_rows import lines, names, now_right


def grid(store: str, out: Path, **changes: Any) -> AblateConfig:
    usual: dict[str, Any] = {"test_images": IMAGES, "epochs": 2, "arms": ("student", "kd+ig"), "seeds": (0,)}
    return AblateConfig(store=store, out=str(out), **usual | changes)


EXPECTED = ["kd+ig-mobilenet-cut-5-seed0", "student-mobilenet-cut-5-seed0"]


@pytest.fixture(scope="module")
def swept(cluster: None, toy_store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "out"
    assert ablate(grid(toy_store, out)) == 0
    return out


def test_a_grid_leaves_a_row_and_a_network_of_each_run(swept: Path) -> None:
    assert names(swept) == lines(swept) == EXPECTED
    for row in read_rows(swept):
        assert [entry["epoch"] for entry in row["history"]] == [1, 2]
        assert row["state"] == "done" and row["test"]["count"] == 30
        assert sorted(os.listdir(swept / "students" / row["cell"])) == ["config.json", "model.json", "model.safetensors", "result.json"]
    assert read_status(swept).phase == "finished"
    assert list((swept / "tune").rglob("events.out.tfevents.*"))  # TensorBoard's
    page = (swept / "report.html").read_text()
    assert "2 of 2 runs finished" in page and "kd+ig" in (swept / "table.md").read_text()


def test_a_run_of_a_grid_is_the_run_of_jobs_distill(swept: Path, toy_store: str, tmp_path: Path) -> None:
    config = DistillConfig(store=toy_store, test_images=IMAGES, out=str(tmp_path / "one"), arm="kd+ig", epochs=2)
    alone = distill(config)
    row = next(row for row in read_rows(swept) if row["cell"] == "kd+ig-mobilenet-cut-5-seed0")
    assert [e["validation_accuracy"] for e in row["history"]] == [e["validation_accuracy"] for e in alone["history"]]
    losses, theirs = ([e["train_loss"] for e in one["history"]] for one in (row, alone))
    # Another number of threads rounds otherwise, which training magnifies; on processors that multiply in bfloat16, a step rounds to 0.4 %.
    assert row["precision"] == alone["precision"]
    coarse = 10 if row["precision"] == "bfloat16" else 1
    assert losses[0] == pytest.approx(theirs[0], rel=coarse * 1e-4) and losses[1] == pytest.approx(theirs[1], rel=coarse * 1e-3)
    # And each takes the other's directory for its own.
    again = distill(DistillConfig(**{**vars(config), "out": str(swept / "students" / "kd+ig-mobilenet-cut-5-seed0")}))
    assert again == row


def test_a_grid_grows_and_runs_only_what_is_new(swept: Path, toy_store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    before = {p: p.stat().st_mtime_ns for p in (out / "students").rglob("*") if p.is_file()}
    assert ablate(grid(toy_store, out, seeds=(0, 1), arms=("student",))) == 0
    assert names(out) == sorted([*EXPECTED, "student-mobilenet-cut-5-seed1"])
    assert before == {p: p.stat().st_mtime_ns for p in before}
    with pytest.raises(UserError, match="belongs to another configuration .*epochs was 2 and is now 3"):
        ablate(grid(toy_store, out, epochs=3))


def test_a_search_never_meets_the_test_set_and_ends_with_a_recipe(
    cluster: None, toy_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "search"
    config: dict[str, Any] = {"store": toy_store, "out": str(out), "recipe": "paper", "epochs": 2}
    assert tune(TuneConfig(**config, trials=2)) == 0
    assert tune(TuneConfig(**config, trials=3)) == 0  # goes on
    rows = read_rows(out)
    assert len(rows) == 3 == len(lines(out)) and {row["state"] for row in rows} <= {"done", "pruned"}
    assert all("test" not in row and row["config"]["test_images"] is None for row in rows)
    assert len({json.dumps(row["settings"]) for row in rows}) == 3  # no proposal twice
    capsys.readouterr()
    now_right(out, "", 0.1)
    (out / "best.json").unlink(missing_ok=True)
    assert tune(TuneConfig(**config, trials=3)) == 0  # computes nothing
    assert not (out / "best.json").exists()  # all are at chance, so none is the best
    assert "no trial is above chance, 10.0% with 10 classes" in capsys.readouterr().out
    best = next(row for row in rows if row["state"] == "done")
    now_right(out, best["cell"], 0.9)
    assert tune(TuneConfig(**config, trials=3)) == 0
    assert f"best: {best['cell']}, validation 90.0%" in capsys.readouterr().out
    found = distill_config(str(out / "best.json"), store=toy_store, out="o")
    for name in ("alpha", "temperature", "overlay", "learning_rate", "weight_decay"):
        assert getattr(found, name) == best["settings"][name]
    assert found.exponents == (best["settings"]["exponent_low"], best["settings"]["exponent_high"]) and found.epochs == 2
    assert "search" in (out / "report.html").read_text().lower()


def test_a_recipe_of_another_store_is_refused_before_anything_runs(cluster: None, toy_store: str, tmp_path: Path) -> None:
    recipe = tmp_path / "best.json"
    recipe.write_text(json.dumps({"alpha": 0.5, "made": {"store_fingerprint": "another"}}))
    with pytest.raises(UserError, match="found with another store"):
        ablate(grid(toy_store, tmp_path / "out", recipes=(str(recipe),)))
    assert not (tmp_path / "out").exists()
    recipe.write_text(json.dumps({"alpha": 0.5, "made": {"store_fingerprint": Store.open(toy_store).fingerprint()}}))
    assert cells(grid(toy_store, tmp_path / "out", recipes=(str(recipe),)), Store.open(toy_store))[0].config.alpha == 0.5


@pytest.mark.slow
def test_a_recipe_is_read_where_the_command_was_typed(
    cluster: None, toy_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And there alone: a worker is elsewhere, perhaps on another machine."""
    monkeypatch.chdir(tmp_path)
    Path("best.json").write_text(json.dumps({"epochs": 1, "made": {"store_fingerprint": Store.open(toy_store).fingerprint()}}))
    distill(distill_config("best.json", store=toy_store, out="out", arm="student"))
    assert (tmp_path / "out" / "result.json").exists()


def test_a_store_without_attention_is_refused_for_an_arm_that_needs_it(cluster: None, toy_store: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(toy_store, store)
    manifest = json.loads((store / "manifest.json").read_text())
    plan = manifest["plan"]
    plan["attention_layer"] = None
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds no attention"):
        ablate(grid(str(store), tmp_path / "out", arms=("student", "kd+at")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ()}, "the grid is empty"),
        ({"recipes": ("strong",)}, "say where it is with --teacher"),
        ({"until": "2020-01-01T07:00"}, "in the past"),
        ({"test_images": "folder:nowhere"}, "nowhere"),
        ({"grids": ("controls",), "contents": ("mask",), "store": "nowhere"}, "holds no attribution store"),
    ],
)
def test_bad_settings_are_one_sentence_before_anything_runs(
    cluster: None, toy_store: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ablate(grid(changes.pop("store", toy_store), tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_does_not_approve_a_directory_that_cannot_be_made(cluster: None, toy_store: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file is no directory"):
        ablate(grid(toy_store, tmp_path / "file" / "out", dry_run=True))


def test_a_dry_run_prints_the_grid_its_time_and_cost_and_writes_nothing(
    cluster: None, toy_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate(grid(toy_store, tmp_path / "out", dry_run=True, price=3600.0)) == 0
    said = capsys.readouterr().out
    assert "0 of 2 runs finished, 2 to go" in said and "kd+ig" in said and "(as here)" in said and "cost" in said
    small = tmp_path / "small.json"  # whose steps need only the first part of the store
    small.write_text('{"batch_size": 2}')
    assert ablate(grid(toy_store, tmp_path / "out", dry_run=True, recipes=(str(small),))) == 0
    assert "0 of 2 runs finished, 2 to go" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_has_a_row_that_says_so_and_stops_nothing(cluster: None, toy_store: str, tmp_path: Path) -> None:
    recipe = tmp_path / "wild.json"
    recipe.write_text(json.dumps({"learning_rate": 1e30, "optimizer": "sgd"}))
    assert ablate(grid(toy_store, tmp_path / "out", recipes=(str(recipe), "paper"), arms=("student",), seeds=(0,))) == 0
    states = {row["recipe"]: row["state"] for row in read_rows(tmp_path / "out")}
    assert states == {str(recipe): "diverged", "paper": "done"}
    assert "student, wild" in (tmp_path / "out" / "report.html").read_text()
    assert not list((tmp_path / "out").rglob(STATE))


def test_test_pictures_are_looked_at_before_any_run_and_do_not_matter_to_finished_ones(swept: Path, toy_store: str, tmp_path: Path) -> None:
    out, images = tmp_path / "out", pictures(tmp_path / "images", "test", 30)
    shutil.copytree(swept, out)
    path = next((tmp_path / "images").rglob("004.png"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="004.png.*--bad-images skip"):
        ablate(grid(toy_store, tmp_path / "new", test_images=images))
    assert not (tmp_path / "new").exists()
    assert ablate(grid(toy_store, out, test_images=images)) == 0


def test_an_error_of_ours_is_not_tried_again(cluster: None, run_job: Program, toy_store: str, tmp_path: Path) -> None:
    shutil.copytree(toy_store, tmp_path / "store")
    part = tmp_path / "store" / "part-00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    out = ["--out", str(tmp_path / "out"), "--arms", "student", "--seeds", "0", "--epochs", "1"]
    done = run_job("ablate", "--store", str(tmp_path / "store"), *out)
    assert done.returncode == 1 and "part-00001.parquet is damaged" in done.stderr and not (tmp_path / "out").exists()
    group = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(0)
    pictures = next(group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == "image")
    place = pictures.data_page_offset + pictures.total_compressed_size // 2
    part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])  # which only who reads the pictures sees
    done = run_job("ablate", "--store", str(tmp_path / "store"), *out)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said and "tried again" not in said, said
    (failure,) = read_status(tmp_path / "out").failures.values()
    assert failure["tries"] == 1 and "part-00001.parquet is damaged" in failure["error"]


def test_each_run_has_the_weights_that_it_starts_from_in_its_identity(toy_store: str, teacher: str, tmp_path: Path) -> None:
    """Whichever stands first in the grid: with other weights in that file it would be another run."""
    weights = Path(shutil.copytree(teacher, tmp_path / "weights"))
    scratch, tuned = tmp_path / "scratch.json", tmp_path / "tuned.json"
    scratch.write_text(json.dumps({"epochs": 1}))
    tuned.write_text(json.dumps({"epochs": 1, "init": str(weights), "student": "mobilenet:cut=5"}))
    asked, opened = grid(toy_store, tmp_path / "out", recipes=(str(scratch), str(tuned)), arms=("kd",)), Store.open(toy_store)
    both = settled(cells(asked, opened), opened)
    claim(both)
    kept = [json.loads((Path(cell.config.out) / "config.json").read_text()).get("init_sha256") for cell in both]
    assert kept == [None, init_hash(str(weights))]
    claim(both[1:])  # alone, as another command may have it
    network = checkpoint.load(weights)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    shutil.rmtree(weights)
    checkpoint.save(network, weights, {})
    claim(both[:1])
    with pytest.raises(UserError, match="init_sha256 was .* and is now"):
        claim(both)


def test_a_search_goes_on_where_its_store_got_views_later(toy_store: str, teacher: str, tmp_path: Path) -> None:
    """By the logits that it began with."""
    store = str(shutil.copytree(toy_store, tmp_path / "store"))
    asked = TuneConfig(store=store, out=str(tmp_path / "out"), recipe="paper", arm="kd")
    before = decided(base_of(asked), Store.open(store))
    claim_search(asked, before)
    add_views(store, teacher, "2")
    after = decided(base_of(asked), Store.open(store))
    assert before == after and after.logits == "image"
    claim_search(asked, after)
    new = dataclasses.replace(asked, out=str(tmp_path / "new"))
    assert decided(base_of(new), Store.open(store)).logits == "views"
