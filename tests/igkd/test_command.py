"""The command igkd, as a user types it."""

import os
import subprocess
import sys

import pytest

from igkd.__main__ import COMMANDS
from tests.helpers.paths import ROOT
from tests.helpers.programs import run_program


def test_help_names_every_command_and_a_wrong_one_is_told() -> None:
    done = run_program("igkd", ["--help"])
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
    done = run_program("igkd", ["distil"])
    assert done.returncode == 2 and "there is no command 'distil'; it is one of pipeline, teacher" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], [], ["evaluate", "--help"], ["sweeps", "--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)  # before anything is written
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = [sys.executable, "-m", "igkd", *arguments]
    done = subprocess.run(program, cwd=ROOT, env=buffered, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")
