"""Grids and searches on real Ray Tune: what they leave, and what is left of them when something dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from igkd.base.errors import UserError
from igkd.base.run_directory import STATE
from igkd.config.distill import DistillConfig
from igkd.config.recipes import distill_config
from igkd.config.sweeps import AblateConfig, TuneConfig
from igkd.store import Store
from igkd.sweeps.grid import cells
from igkd.sweeps.ledger import read_rows, read_status
from igkd.training.state import read_history
from jobs.ablate import ablate
from jobs.backend.trials import persist
from jobs.distill import distill
from jobs.tune import tune
from tests.helpers.paths import IMAGES, ROOT
from tests.helpers.pictures import pictures
from tests.helpers.sweep_rows import now_right
from tests.helpers.training import without_seconds

Program = Callable[..., subprocess.CompletedProcess[str]]


def grid(store: str, out: Path, **changes: Any) -> AblateConfig:
    usual: dict[str, Any] = {"test_images": IMAGES, "epochs": 2, "arms": ("student", "kd+ig"), "seeds": (0,)}
    return AblateConfig(store=store, out=str(out), **usual | changes)


def arguments(store: str, out: Path, *more: str) -> list[str]:
    usual = ["--test-images", IMAGES, "--arms", "student", "kd+ig", "--seeds", "0", "1", "--epochs", "6"]
    return ["--store", store, "--out", str(out), *usual, *more]


def names(out: Path) -> list[str]:
    return sorted(row["cell"] for row in read_rows(out))


def lines(out: Path) -> list[str]:
    return sorted(json.loads(line)["cell"] for line in (out / "rows.jsonl").read_text().splitlines())


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
    # Another number of threads rounds otherwise, which training magnifies.
    assert losses[0] == pytest.approx(theirs[0], rel=1e-4) and losses[1] == pytest.approx(theirs[1], rel=1e-3)
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
    part.write_bytes(part.read_bytes()[:-1])
    out = ["--out", str(tmp_path / "out"), "--arms", "student", "--seeds", "0", "--epochs", "1"]
    done = run_job("ablate", "--store", str(tmp_path / "store"), *out)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said and "tried again" not in said, said
    (failure,) = read_status(tmp_path / "out").failures.values()
    assert failure["tries"] == 1 and "part-00001.parquet is damaged" in failure["error"]


def test_a_run_killed_for_memory_does_not_end_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    """Tune raises what it does then: a RuntimeError from Ray's OutOfMemoryError."""
    calls: list[int] = []

    def attempt() -> None:
        calls.append(len(calls))
        if len(calls) < fails_until:
            raise RuntimeError("Caught unexpected exception") from ray.exceptions.OutOfMemoryError("killed")

    fails_until = 3
    persist(attempt)
    assert len(calls) == 3 and capsys.readouterr().out.count("too little memory") == 2
    calls.clear()
    fails_until = 9
    with pytest.raises(UserError, match="too little memory for so many runs"):
        persist(attempt)
    assert len(calls) == 3

    def other() -> None:
        calls.append(0)
        raise RuntimeError("something else")

    calls.clear()
    with pytest.raises(RuntimeError, match="something else"):
        persist(other)
    assert len(calls) == 1


def kill_all(process: "subprocess.Popen[str]") -> None:
    """SIGKILL for a driver and everything that it started."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def wait_until(true: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    for _ in range(2400):
        if true():
            return
        assert process.poll() is None, "it ended too early"
        time.sleep(0.05)
    raise AssertionError("it never came")


def start(options: list[str]) -> "subprocess.Popen[str]":
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "jobs.ablate", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.slow
def test_kill_9_in_the_middle_and_the_same_command_ends_with_the_same_rows(
    cluster: None, run_job: Program, toy_store: str, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert run_job("ablate", *arguments(toy_store, whole)).returncode == 0
    students = out / "students"
    for moment in (lambda: bool(list(students.glob(f"*/{STATE}"))), lambda: len(list(students.glob("*/result.json"))) >= 1):
        first = start(arguments(toy_store, out))
        wait_until(moment, first)
        kill_all(first)
    kept = {path.parent.name: len(read_history(path.parent)) for path in students.glob(f"*/{STATE}")}
    finished = names(out)
    assert run_job("ablate", *arguments(toy_store, out)).returncode == 0
    assert finished or kept
    assert names(out) == lines(out) == sorted(f"{arm}-mobilenet-cut-5-seed{seed}" for arm in ("student", "kd+ig") for seed in (0, 1))
    rows = {row["cell"]: row for row in read_rows(whole)}
    for row in read_rows(out):
        # Not only the same set: the same networks, since every choice is a function of seed, epoch and image.
        assert without_seconds(row["history"]) == without_seconds(rows[row["cell"]]["history"])
        assert row["test"] == rows[row["cell"]]["test"]


@pytest.mark.slow
def test_ctrl_c_stops_with_a_status_and_goes_on(toy_store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(arguments(toy_store, out, "--epochs", "40"))
    wait_until(lambda: bool(list((out / "students").glob(f"*/{STATE}"))), first)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=90)
    assert first.returncode == 130 and "the same command continues" in said, said
    assert read_status(out).phase == "stopped"


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_goes_on_from_its_last_epoch(toy_store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = start(arguments(toy_store, out, "--seeds", "0", "--epochs", "12"))
    state = out / "students" / "kd+ig-mobilenet-cut-5-seed0" / STATE
    wait_until(lambda: state.exists() and len(read_history(state.parent)) >= 2, job)
    for one in psutil.Process(job.pid).children(recursive=True):
        if "train_cell" in " ".join(one.cmdline()) or "ImplicitFunc" in " ".join(one.cmdline()):
            one.kill()
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 0, said
    assert "failed and is tried again" in said
    assert all([entry["epoch"] for entry in row["history"]] == list(range(1, 13)) for row in read_rows(out)) and len(read_rows(out)) == 2


@pytest.mark.slow
def test_what_fails_is_listed_first_and_the_rest_is_done(cluster: None, run_job: Program, toy_store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    short = ["--seeds", "0", "--epochs", "1"]
    assert run_job("ablate", *arguments(toy_store, out, *short, "--arms", "student")).returncode == 0
    broken = out / "students" / "kd+ig-mobilenet-cut-5-seed0"
    config = json.loads((out / "students" / "student-mobilenet-cut-5-seed0" / "config.json").read_text()) | {"arm": "kd+ig"}
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps(config))
    (broken / STATE).write_bytes(b"no state")
    job = run_job("ablate", *arguments(toy_store, out, *short, "--arms", "kd+ig", "kd"))
    assert job.returncode == 1, job.stderr
    failure = read_status(out).failures["kd+ig-mobilenet-cut-5-seed0"]
    assert failure["tries"] == 1 and "delete it to begin that run anew" in failure["error"]
    assert names(out) == ["kd-mobilenet-cut-5-seed0", "student-mobilenet-cut-5-seed0"]
    page = (out / "report.html").read_text()
    assert page.index("delete it to begin that run anew") < page.index("Accuracy by arm")
    (broken / STATE).unlink()
    again = run_job("ablate", *arguments(toy_store, out, *short, "--arms", "kd+ig", "kd"))
    assert again.returncode == 0 and "kd+ig-mobilenet-cut-5-seed0" in names(out) and not read_status(out).failures


@pytest.mark.slow
def test_a_deadline_stops_cleanly_and_reports(run_job: Program, toy_store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_job(
        "tune", "--store", toy_store, "--out", str(out), "--recipe", "paper", "--epochs", "60", "--trials", "50", "--hours", "0.01"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_status(out).phase == "stopped" and (out / "report.html").exists()
    begun = [path.parent for path in (out / "students").glob("*/config.json") if not (path.parent / "result.json").exists()]
    assert begun and not any(row["cell"] in {path.name for path in begun} for row in read_rows(out))  # stopped, not pruned
    left = {path.name for path in begun}
    more = run_job(
        "tune", "--store", toy_store, "--out", str(out), "--recipe", "paper", "--epochs", "60",
        "--trials", str(len(read_rows(out)) + len(left)),
    )  # fmt: skip
    assert more.returncode == 0, more.stderr[-2000:]
    assert left <= set(names(out))  # what was begun is finished, not something else begun
