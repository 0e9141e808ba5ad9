"""A search for a fast student on real Ray Tune: what it times, what it trains, what it leaves, and what it cannot reach."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from igkd.base.errors import UserError
from igkd.base.run_directory import STATE
from igkd.config.distill import DistillConfig
from igkd.config.recipes import distill_config
from igkd.config.sweeps import SearchConfig
from igkd.networks import checkpoint
from igkd.sweeps.grid import make_cell
from igkd.sweeps.ledger import read_rows, read_status
from igkd.sweeps.publish import publish
from igkd.sweeps.speed_search import read_latencies
from igkd.training.run import Trainer
from igkd.training.student_data import distill_task
from jobs.backend.halving import Halving
from jobs.backend.sweep_progress import begun_history
from jobs.distill import distill
from jobs.search import search, write_best
from tests.helpers.paths import IMAGES
from tests.helpers.sweep_rows import now_right


def config(store: str, teacher: str, out: Path, **changes: Any) -> SearchConfig:
    usual: dict[str, Any] = {"budget": 0.01, "candidates": 3, "trials": 2, "recipe": "paper", "epochs": 2, "rounds": 2}
    return SearchConfig(store=store, teacher=teacher, out=str(out), **usual | changes)


@pytest.fixture(scope="module")
def searched(cluster: None, toy_store: str, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "out"
    assert search(config(toy_store, teacher, out)) == 0
    return out


@pytest.mark.slow
def test_all_are_timed_and_the_largest_trained_beside_the_cut_one(searched: Path) -> None:
    latencies = read_latencies(searched)
    assert latencies is not None
    first, *found = latencies.measured
    assert not first.candidate and len(found) == 3 and all(one.times_as_fast > 0 and one.candidate for one in found)
    assert all(first.parameters / 2 <= one.parameters <= first.parameters for one in found)
    rows = read_rows(searched)
    largest = sorted(found, key=lambda one: -one.parameters)[:2]
    assert {row["config"]["student"] for row in rows} == {first.network, *(one.network for one in largest)}
    by_network = {row["network"]: row for row in rows}
    assert by_network[first.network]["state"] == "done" and "cut=5" in first.network
    for one in largest:
        row = by_network[one.network]
        if row["state"] == "done":
            assert row["parameters"] == one.parameters and row["compression"] > first.parameters / one.parameters
            assert checkpoint.load(searched / "students" / row["cell"]).spec.name == one.network
    assert read_status(searched).kind == "search"


@pytest.mark.slow
def test_the_test_images_are_out_of_reach(searched: Path) -> None:
    for row in read_rows(searched):
        assert "test" not in row and row["config"]["test_images"] is None
    assert "test_images" not in SearchConfig.__dataclass_fields__


@pytest.mark.slow
def test_the_report_draws_the_front(searched: Path) -> None:
    page = (searched / "report.html").read_text()
    assert 'aria-label="Chart of validation accuracy against times as fast' in page and "on the front" in page and "mobilenet:cut=5" in page
    (searched / "report.html").unlink()
    assert "runs finished" in publish(searched)  # what `igkd.sweeps report` calls
    assert (searched / "report.html").read_text() == page


@pytest.mark.slow
def test_the_same_command_computes_nothing_again(searched: Path, toy_store: str, teacher: str) -> None:
    kept = [path for path in searched.rglob("*") if path.is_file() and ("students" in path.parts or path.name == "latencies.json")]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept}
    assert search(config(toy_store, teacher, searched)) == 0
    for path, (changed, data) in before.items():
        assert path.read_bytes() == data and (path.name == "latencies.json" or path.stat().st_mtime_ns == changed)


@pytest.mark.slow
def test_its_best_is_a_recipe_for_jobs_distill(searched: Path, toy_store: str, teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(searched, out)
    (out / "best.json").unlink(missing_ok=True)
    done = [row for row in read_rows(searched) if row["state"] == "done" and row["network"].startswith("lean:")]
    now_right(out, done[-1]["cell"], 0.1)
    search(config(toy_store, teacher, out))
    assert not (out / "best.json").exists()  # at chance, none is the best
    now_right(out, done[-1]["cell"], 0.9)
    search(config(toy_store, teacher, out))
    best = json.loads((out / "best.json").read_text())
    assert best["made"]["validation_accuracy"] == 0.9 and best["made"]["cell"] == done[-1]["cell"]
    settings = {"store": toy_store, "out": str(tmp_path / "one"), "test_images": IMAGES, "arm": "kd", "epochs": 1}
    row = distill(distill_config(str(out / "best.json"), **settings))
    assert row["config"]["student"] == best["student"] and row["test"]["count"] == 30
    assert sorted(os.listdir(tmp_path / "one"))[-3:] == ["model.json", "model.safetensors", "result.json"]


@pytest.mark.slow
def test_named_networks_are_candidates_instead_of_random_ones(
    cluster: None, toy_store: str, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of any family; a network named twice is one, and the one they are compared with is none."""
    named = ("airbench:2:8,8", "lean:2:8x1", "airbench:2:8,8", "mobilenet:cut=5")
    assert search(config(toy_store, teacher, tmp_path / "out", students=named)) == 0
    latencies = read_latencies(tmp_path / "out")
    assert latencies is not None
    assert [one.network for one in latencies.measured if one.candidate] == ["airbench:2:8,8", "lean:2:8x1"]
    assert {row["network"] for row in read_rows(tmp_path / "out")} == {"airbench:2:8,8", "lean:2:8x1", latencies.measured[0].network}
    done = [row for row in read_rows(tmp_path / "out") if row["state"] == "done" and row["network"] == "airbench:2:8,8"]
    for row in done:  # it is the best candidate, although it is no lean one
        now_right(tmp_path / "out", row["cell"], 0.9)
        search(config(toy_store, teacher, tmp_path / "out", students=named))
        assert json.loads((tmp_path / "out" / "best.json").read_text())["student"] == "airbench:2:8,8"


@pytest.mark.slow
def test_an_impossible_budget_names_the_fastest_and_trains_nothing(searched: Path, toy_store: str, teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "latencies.json"):  # times do not hang on the budget
        (out / name).write_bytes((searched / name).read_bytes())
    with pytest.raises(
        UserError, match=r"none of 3 candidates is 1e\+06 times as fast .* the fastest, lean:[124]:[0-9x,]+, is .* --budget"
    ):
        search(config(toy_store, teacher, out, budget=1e6))
    assert not (out / "students").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "mobilenet:cut=4"}, "cut 4 is not one of"),
        ({"parameters": 300}, "there are only 0 lean students"),
        ({"students": ("airbench:8,8",), "parameters": 300}, "airbench:8,8 has more than --parameters 300"),
        ({"students": ("mobilenet:cut=5",)}, "--students must name other networks than --student mobilenet:cut=5"),
        ({"students": ("airbench:0",)}, "names no network"),
        ({"store": "nowhere"}, "holds no attribution store"),
        ({"teacher": "nowhere"}, "no checkpoint"),
    ],
)
def test_bad_settings_are_one_sentence_before_anything_is_timed(
    toy_store: str, teacher: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = {"store": toy_store, "teacher": teacher} | changes
    with pytest.raises(UserError, match=message):
        search(config(given.pop("store"), given.pop("teacher"), tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"budget": 0.0}, {"budget": float("nan")}, {"trials": 0}, {"candidates": 0}])
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        config("store", "teacher", Path("out"), **changes)


@pytest.mark.parametrize("text", ["[]", "{}", '{"machine": 3}', "{"])
def test_damaged_latencies_are_refused_in_words(text: str, tmp_path: Path) -> None:
    (tmp_path / "latencies.json").write_text(text)
    with pytest.raises(UserError, match="latencies.json"):
        read_latencies(tmp_path)


def test_latencies_whose_networks_are_none_are_refused(tmp_path: Path) -> None:
    whole = {"machine": "m", "rounds": 2, "load": [0.5], "budget": 8.0, "networks": [{"network": "lean:2:8x1"}], "provenance": {}}
    (tmp_path / "latencies.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match="not of a search of this version"):
        read_latencies(tmp_path)


def test_the_cut_student_is_neither_stopped_nor_are_others_because_of_it() -> None:
    rows = [
        {"cell": name, "history": [{"epoch": n, "validation_accuracy": accuracy} for n in range(1, 4)]}
        for name, accuracy in (("cut", 0.9), ("good", 0.5), ("cut", 0.1), ("bad", 0.2))
    ]
    halving, seen = Halving(9, frozenset({"cut"}), 3), []
    nobody: Any = None
    for number, row in enumerate(rows):
        trial: Any = SimpleNamespace(trial_id=f"{row['cell']}{number}", config={"cell": row["cell"]})
        halving.on_trial_add(nobody, trial)
        seen.append([halving.on_trial_result(nobody, trial, entry) for entry in row["history"]])
    go, stop = "CONTINUE", "STOP"
    assert seen == [[go] * 3, [go] * 3, [go] * 3, [go, go, stop]] and halving.stopped == {"bad3"}


def accuracies(halving: Halving) -> dict[int, dict[str, float]]:
    """What ASHA compares: at each of its epochs, the accuracies of the runs."""
    return {epoch: recorded for epoch, recorded in halving._brackets[0]._rungs}  # type: ignore[attr-defined]


def test_a_run_that_goes_on_is_compared_by_what_it_had_after_each_epoch() -> None:
    """As in the unbroken search: by its later epochs alone, those that begin now would be stopped at once."""
    history = [{"epoch": n, "validation_accuracy": 0.1 + 0.04 * n} for n in range(1, 13)]
    nobody: Any = None
    unbroken, resumed = Halving(18), Halving(18)
    resumed.history_of = lambda trial: history[:9] if trial.trial_id == "begun" else ()
    for halving, first in ((unbroken, 0), (resumed, 9)):
        trial: Any = SimpleNamespace(trial_id="begun", config={})
        halving.on_trial_add(nobody, trial)
        for entry in history[first:]:
            assert halving.on_trial_result(nobody, trial, entry) == "CONTINUE"
        new: Any = SimpleNamespace(trial_id="new", config={})
        halving.on_trial_add(nobody, new)
        assert halving.on_trial_result(nobody, new, {"epoch": 2, "validation_accuracy": 0.19}) == "CONTINUE"
    assert accuracies(resumed) == accuracies(unbroken) and accuracies(resumed)[2] == {"begun": pytest.approx(0.18), "new": 0.19}


def test_runs_that_were_begun_are_given_to_asha_from_their_states(toy_store: str, tmp_path: Path) -> None:
    base = DistillConfig(store=toy_store, out=str(tmp_path), arm="student", student="lean:2:8x1", epochs=3, batch_size=32)
    cell = make_cell(str(tmp_path), base)
    work: Any = SimpleNamespace(here=tmp_path, cell_of=lambda settings: cell)
    assert begun_history(work, {}) == []
    trainer = Trainer(distill_task(base), lambda network: network, progress=lambda line: None)
    for history in trainer.epochs():
        trainer.save(Path(cell.config.out))
        assert begun_history(work, {}) == history
        if len(history) == 2:
            break
    (Path(cell.config.out) / STATE).write_bytes(b"half")
    assert begun_history(work, {}) == []


def test_a_best_that_is_none_any_more_is_removed(tmp_path: Path) -> None:
    """Another --budget continues the same directory; what the first one found is not within it."""
    (tmp_path / "best.json").write_text("{}")
    write_best(config("s", "t", tmp_path, budget=20.0), [], [], "f")
    assert not (tmp_path / "best.json").exists()


def test_a_lean_student_and_a_cut_one_have_directories_of_their_own() -> None:
    one, other = (make_cell("out", DistillConfig(store="s", out="o", student=name)) for name in ("lean:2:8x1", "mobilenet:cut=5"))
    assert one.name != other.name and one.label == other.label
