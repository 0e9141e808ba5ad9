import datetime
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igkd.base.errors import CONTINUES, UserError
from igkd.base.time_limit import duration, seconds_left, seconds_until
from igkd.config.sweeps import SweepConfig
from igkd.evaluation.progress import progress
from igkd.sweeps.ledger import Kind, Ledger, Row, Status, describe, read_rows, read_status, remaining_seconds
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
    # A run took 10 s of which 6 were epochs: bb and ccc take 4 s more, each. One that was continued has epochs from before.
    slow, continued = row("a"), row("a", epochs=5)
    slow["provenance"]["seconds"], continued["provenance"]["seconds"] = 10.0, 4.0
    assert remaining_seconds(status(running={"bb": 1}), [slow]) == pytest.approx(15 + 2 * 4)
    assert remaining_seconds(status(running={"bb": 1}), [continued]) == pytest.approx(15)
    # Before a run is finished, the epochs of the running ones count: 1 + 2 + 4 are left.
    assert remaining_seconds(status(running={"a": 1}), [], [row("a", epochs=1, seconds=5.0)["history"]]) == pytest.approx(7 * 5)
    # A search of 5 trials, one done in 2 epochs, one at its first of 10: 9 + 3 x 2 epochs.
    searched = status(planned=[], total=5, running={"t": 1}, epochs={"t": 10})
    assert remaining_seconds(searched, [row("a")]) == pytest.approx(45)


def test_rows_of_other_grids_are_not_counted() -> None:
    (line,) = describe(status(phase="stopped"), [row("a"), row("other")], now=0.0)
    assert line == f"stopped; {CONTINUES}: 1 of 3 runs finished, 2 to go (and 1 of other grids)"


@pytest.mark.parametrize("kind", ["tuning", "search"])
def test_driver_status_command_and_page_say_the_same_count(tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial stopped early by ASHA, one finished, one diverged, one failed, one running when its driver was stopped."""
    ledger = Ledger(tmp_path, status(planned=[], total=6, kind=kind, began=time.time(), deadline=time.time() + 100))
    for name, state in (("a", "pruned"), ("bb", "done"), ("ccc", "diverged")):
        (tmp_path / "students" / name).mkdir(parents=True)
        ledger.conclude(name, row(name, state=state))
    ledger.status.failures["d"] = {"tries": 3, "error": "no space"}
    ledger.status.running["e"] = 1
    ledger.write_status()
    ended = "1 of 6 runs finished, 1 stopped early, 1 diverged, 1 failed"
    assert ledger.status.progress(ledger.rows) == f"{ended}, 1 running, 1 to go"
    assert not ledger.close(lambda rows: len(rows) >= 6)  # as after Ctrl-C
    told = read_status(tmp_path).progress(read_rows(tmp_path))
    assert told == f"{ended}, 2 to go" == describe(read_status(tmp_path), read_rows(tmp_path), time.time())[0].split(": ")[1]
    assert not read_status(tmp_path).time_was_up
    monkeypatch.setattr(ledger.status, "deadline", time.time() - 1)
    ledger.write_status()
    assert read_status(tmp_path).time_was_up
    assert describe(read_status(tmp_path), [], time.time())[0].startswith(f"stopped when its time was up; {CONTINUES}: 0 of 6 runs")


@given(st.lists(st.sampled_from(["done", "pruned", "diverged"]), max_size=9), *3 * [st.integers(0, 9)])
def test_the_numbers_add_up_to_the_total(states: list[str], total: int, running: int, failed: int) -> None:
    said = progress([{"state": state} for state in states], total, running=running, failed=failed)
    finished, whole, *others = map(int, re.findall(r"[0-9]+", said))
    assert finished == states.count("done") and finished + sum(others) == whole == max(total, len(states) + running + failed)


def test_description_tells_a_killed_driver_from_a_live_one() -> None:
    pulse = status(updated=1000.0, running={"bb": 1}, failures={"ccc": {"tries": 3, "error": "out of memory"}})
    alive = describe(pulse, [row("a")], now=1010.0)
    assert alive[0] == "running: 1 of 3 runs finished, 1 failed, 1 running"
    assert "ends about" in alive[1] and "running  bb: epoch 1 of 2" in alive[2]
    assert alive[-1] == "  failed   ccc (3 tries): out of memory"
    dead = describe(pulse, [row("a")], now=2000.0)
    assert (
        dead[0].startswith("killed")
        and "1 to go" in dead[0]
        and "running" not in dead[0]
        and not any("ends about" in line for line in dead)
    )
    late = describe(status(updated=1000.0, running={"bb": 1}, deadline=1011.0), [row("a")], now=1010.0)
    assert any("before all is done" in line for line in late)


def test_status_command_says_so_by_its_exit_status(tmp_path: Path) -> None:
    def asked() -> tuple[int, str]:
        done = run_program("igkd", ["sweeps", "status", str(tmp_path)])
        return done.returncode, done.stdout + done.stderr

    assert asked() == (1, f"error: {tmp_path} is no sweep (it has no status.json); jobs.ablate, jobs.tune and jobs.search make one\n")
    ledger = Ledger(tmp_path, status(updated=time.time(), running={"a": 0}))
    code, said = asked()
    assert code == 0 and "running: 0 of 3 runs finished, 1 running, 2 to go" in said
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


@pytest.mark.parametrize("text", ["13:00Z", "13:00+02:00", "2026", "13"])
def test_a_time_of_day_has_minutes_and_no_zone(text: str) -> None:
    with pytest.raises(UserError, match="is no time; give one such as 07:00"):
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
    assert SweepConfig(store="s", out="o").deadline(NOON) is None and seconds_left(None) is None
    assert SweepConfig(store="s", out="o", hours=1.5).deadline(NOON) == NOON.timestamp() + 5400
    assert SweepConfig(store="s", out="o", until="13:30").deadline(NOON) == NOON.timestamp() + 5400
    assert seconds_left(time.time() + 60) == pytest.approx(60, abs=1) and seconds_left(time.time() - 60) == 1


@pytest.mark.parametrize(("day", "hours"), [("2026-10-24", 10), ("2027-03-27", 8), ("2026-06-01", 9)])
def test_until_is_a_time_on_the_clock_also_in_the_night_in_which_that_is_changed(
    day: str, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")  # Berlin's
    time.tzset()
    try:
        now = datetime.datetime.fromisoformat(f"{day}T22:00").astimezone()
        assert seconds_until("07:00", now) == seconds_until("07:00", now.astimezone(datetime.UTC)) == 3600 * hours
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(("seconds", "words"), [(45, "45 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (12_000, "3 h 20 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
