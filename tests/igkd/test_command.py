"""The command igkd, as a user types it."""

import subprocess
import sys

from igkd.__main__ import COMMANDS
from tests.helpers.paths import ROOT
from tests.helpers.programs import run_program


def test_help_names_every_command_and_a_wrong_one_is_told() -> None:
    done = run_program("igkd", ["--help"])
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
    done = run_program("igkd", ["distil"])
    assert done.returncode == 2 and "there is no command 'distil'; it is one of pipeline, teacher" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    shell = f"for i in 1 2 3; do {sys.executable} -m igkd --help | true; done"
    done = subprocess.run(shell, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
