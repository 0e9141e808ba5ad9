import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from igkd.base.errors import UserError
from igkd.base.time_limit import seconds_until
from igkd.config.sweeps import SweepConfig
from igkd.sweeps.ledger import Ledger, Row, Status, describe, duration, read_rows, read_status, remaining_seconds
from tests.helpers.programs import run_program

NOON = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)


def row(name: str, epochs: int = 2, seconds: float = 3.0, **rest: Any) -> Row:
    history = [{"epoch": e + 1, "validation_accuracy": 0.5, "seconds": seconds} for e in range(epochs)]
    return {"cell": name, "state": "done", "history": history, "provenance": {"started": f"2026-01-01T00:00:0{len(name)}"}, **rest}


def status(**changes: Any) -> Status:
    usual: dict[str, Any] = {"command": "c", "planned": ["a", "bb", "ccc"], "total": 3, "slots": 1, "began": 0.0}
    return Status(**usual | {"epochs": {"a": 2, "bb": 2, "ccc": 4}} | changes)


def finish(root: Path, name: str) -> Row:
    """Leave a result as a run does."""
    (root / "students" / name).mkdir(parents=True)
    (root / "students" / name / "result.json").write_text(json.dumps(row(name)))
    return row(name)


def lines(root: Path) -> list[str]:
    return [json.loads(line)["cell"] for line in (root / "rows.jsonl").read_text().splitlines()]


def test_rows_are_appended_as_they_come(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, status())
    assert lines(tmp_path) == []
    for n, name in enumerate(("bb", "a"), 1):
        ledger.add(finish(tmp_path, name))
        assert len(lines(tmp_path)) == n and lines(tmp_path)[-1] == name


def test_a_driver_killed_between_result_and_row_or_within_a_row_loses_and_repeats_nothing(tmp_path: Path) -> None:
    first = Ledger(tmp_path, status())
    first.add(finish(tmp_path, "a"))
    finish(tmp_path, "bb")  # and killed before its row
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"cell": "cc')  # and within one
    again = Ledger(tmp_path, status())
    assert lines(tmp_path) == ["a", "bb"] == [r["cell"] for r in again.rows]
    again.add(finish(tmp_path, "ccc"))
    assert lines(tmp_path) == ["a", "bb", "ccc"] == [r["cell"] for r in read_rows(tmp_path)]


def test_a_run_that_ends_while_its_driver_is_stopped_has_its_row(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, status())
    ledger.add(finish(tmp_path, "a"))
    finish(tmp_path, "bb")  # whose end nobody told the driver of
    ledger.refresh()
    assert lines(tmp_path) == ["a", "bb"] == [r["cell"] for r in ledger.rows]


def test_a_run_that_is_concluded_has_a_result_and_no_state(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, status())
    (tmp_path / "students" / "a").mkdir(parents=True)
    (tmp_path / "students" / "a" / "state.safetensors").touch()
    ledger.conclude("a", row("a", state="pruned"))
    assert os.listdir(tmp_path / "students" / "a") == ["result.json"]
    assert read_rows(tmp_path)[0]["state"] == "pruned"


def test_results_of_single_runs_are_rows_too(tmp_path: Path) -> None:
    finish(tmp_path, "a")
    path = tmp_path / "students" / "a" / "result.json"
    path.write_text(json.dumps({k: v for k, v in row("a").items() if k not in ("cell", "state")}))
    assert read_rows(tmp_path)[0] | {"share": 1.0} == row("a") | {"share": 1.0}


def test_status_is_read_back_and_a_failure_that_was_mended_goes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, status(failures={"a": {"tries": 3, "error": "no space"}}))
    assert read_status(tmp_path).failures == {"a": {"tries": 3, "error": "no space"}}
    ledger.add(finish(tmp_path, "a"))
    ledger.write_status("finished")
    assert read_status(tmp_path).failures == {} and read_status(tmp_path).phase == "finished"
    with pytest.raises(UserError, match="is no sweep"):
        read_status(tmp_path / "students")


def test_remaining_time_by_hand() -> None:
    assert remaining_seconds(status(), []) is None
    # bb has 2 - 1 epochs left, ccc all 4: 5 epochs of 3 s.
    assert remaining_seconds(status(running={"bb": 1}), [row("a")]) == pytest.approx(15)
    assert remaining_seconds(status(running={"bb": 1}, slots=2), [row("a")]) == pytest.approx(7.5)
    # More places than runs help nothing.
    assert remaining_seconds(status(running={"bb": 1}, slots=20), [row("a")]) == pytest.approx(7.5)
    assert remaining_seconds(status(failures={"ccc": {}}), [row("a"), row("bb")]) == 0
    # A search of 5 trials, one done in 2 epochs, one at its first of 10: 9 + 3 x 2 epochs.
    searched = status(planned=[], total=5, running={"t": 1}, epochs={"t": 10})
    assert remaining_seconds(searched, [row("a")]) == pytest.approx(45)


def test_rows_of_other_grids_are_not_counted() -> None:
    assert describe(status(phase="stopped"), [row("a"), row("other")], now=0.0)[0].startswith("stopped: 1 of 3 runs done")


def test_description_tells_a_killed_driver_from_a_live_one() -> None:
    pulse = status(updated=1000.0, running={"bb": 1}, failures={"ccc": {"tries": 3, "error": "out of memory"}})
    alive = describe(pulse, [row("a")], now=1010.0)
    assert alive[0] == "running: 1 of 3 runs done, 1 running, 1 failed"
    assert "ends about" in alive[1] and "running  bb: epoch 1 of 2" in alive[2]
    assert alive[-1] == "  failed   ccc (3 tries): out of memory"
    dead = describe(pulse, [row("a")], now=2000.0)
    assert dead[0].startswith("killed") and "0 running" in dead[0] and not any("ends about" in line for line in dead)
    late = describe(status(updated=1000.0, running={"bb": 1}, deadline=1011.0), [row("a")], now=1010.0)
    assert any("before all is done" in line for line in late)


def test_status_command_says_so_by_its_exit_status(tmp_path: Path) -> None:
    def asked() -> tuple[int, str]:
        done = run_program("igkd", ["sweeps", "status", str(tmp_path)])
        return done.returncode, done.stdout + done.stderr

    assert asked() == (1, f"error: {tmp_path} is no sweep (it has no status.json); jobs.ablate, jobs.tune and jobs.search make one\n")
    ledger = Ledger(tmp_path, status(updated=time.time(), running={"a": 0}))
    code, said = asked()
    assert code == 0 and "running: 0 of 3 runs done, 1 running" in said
    ledger.write_status("stopped")
    assert asked()[0] == 1
    ledger.write_status("finished")
    assert asked()[0] == 0


@pytest.mark.parametrize(
    ("text", "hours"), [("13:30", 1.5), ("07:00", 19), ("2026-03-03T12:00+00:00", 48), ("10:59", 22 + 59 / 60), ("12:00:01", 1 / 3600)]
)
def test_until_is_the_next_such_time(text: str, hours: float) -> None:
    assert seconds_until(text, NOON) == pytest.approx(3600 * hours)


@pytest.mark.parametrize("text", ["11:30", "12:00", "2026-02-28T12:00+00:00"])
def test_until_in_the_past_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="in the past"):
        seconds_until(text, NOON)


def test_bad_times_are_refused() -> None:
    with pytest.raises(UserError, match="is no time"):
        seconds_until("seven", NOON)
    with pytest.raises(UserError, match="give one of them"):
        SweepConfig(store="s", out="o", hours=1, until="07:00")
    with pytest.raises(UserError, match="must be above 0"):
        SweepConfig(store="s", out="o", hours=0)
    with pytest.raises(UserError, match="must be a directory"):
        SweepConfig(store="s", out="s3://bucket/sweep")
    assert SweepConfig(store="s", out="o").seconds_left(NOON) is None
    assert SweepConfig(store="s", out="o", hours=1.5).seconds_left(NOON) == 5400


@pytest.mark.parametrize(("seconds", "words"), [(45, "45 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (12_000, "3 h 20 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
