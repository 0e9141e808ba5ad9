"""Programs of ours, run as a user runs them."""

import os
import subprocess
import sys
from collections.abc import Callable

from tests.helpers.paths import ROOT

Program = Callable[..., subprocess.CompletedProcess[str]]
"""Runs a program with these arguments."""


def run_program(name: str, arguments: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m NAME ARGUMENTS` in the checkout; gives exit status and output.

    Args:
        environment: this process's if it is not given.
    """
    command = [sys.executable, "-m", name, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment or dict(os.environ), capture_output=True, text=True, timeout=600, check=False)
