"""A bar in a terminal, lines in a log."""

import os
import re
import subprocess
import sys

import pytest

from igkd.base.progress import Progress

WORK = """
from igkd.base.progress import Progress
with Progress("precompute: ", 40) as progress:
    for done in (10, 20, 30, 40):
        progress(done)
print("after it")
"""
STOPPED = WORK.replace("progress(done)", "progress(done)\n        if done == 20:\n            raise SystemExit('stopped')")


def in_terminal(code: str) -> str:
    """What a program prints into a terminal of 80 columns."""
    ours, theirs = os.openpty()
    environment = os.environ | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        found = b""
        try:
            while data := os.read(ours, 4096):
                found += data
        except OSError:  # Linux says so that the other end was closed
            pass
        assert process.wait(timeout=60) in (0, 1)
    os.close(ours)
    return found.decode()


def test_a_terminal_has_one_bar_that_is_drawn_again() -> None:
    text = in_terminal(WORK)
    bar, after = text.replace("\r\n", "\n").split("\n")[:2]
    shown = [part for part in bar.split("\r") if part.strip()]
    assert len(shown) >= 5 and after == "after it"
    assert re.fullmatch(r"precompute: 10/40 images \|.+\| [\d.]+ images/s, about 1 s left *", shown[1])
    assert re.fullmatch(r"precompute: 40/40 images \|\u2588+\| [\d.]+ images/s, done *", shown[-1])
    assert all(len(part) <= 80 for part in shown)


def test_a_bar_ends_where_work_is_stopped() -> None:
    last = in_terminal(STOPPED).replace("\r\n", "\n").rstrip("\n").split("\n")
    assert len(last) == 2 and "20/40 images" in last[0] and last[1] == "stopped"


def test_a_log_has_the_first_line_the_last_and_some_between(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 102.0, 104.0, 112.0, 113.0, 113.5])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with Progress("precompute: ", 60) as progress:
        for done in (10, 20, 30, 40, 50, 60):
            progress(done)
    assert capsys.readouterr().out.splitlines() == [
        "precompute: 10/60 images, 10.0 images/s, about 5 s left",
        "precompute: 40/60 images, 3.3 images/s, about 6 s left",
        "precompute: 60/60 images, 4.4 images/s, done",
    ]
