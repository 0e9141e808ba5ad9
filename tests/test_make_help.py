"""`make help` lists every target with what it does."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_make_help_lists_every_target() -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    listed = [line.split(maxsplit=1) for line in shown.splitlines()]
    assert [line[0] for line in listed] == targets
    assert all(len(line) == 2 for line in listed), shown
