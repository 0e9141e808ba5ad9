"""Modules of users for the family module:, as files in a directory that Python imports from."""

import itertools
import sys
from pathlib import Path

import pytest

_NUMBERS = itertools.count()


def write_module(directory: Path, text: str, monkeypatch: pytest.MonkeyPatch, allowed: tuple[str, ...] = ("net",)) -> str:
    """Write a module with a name that no other test has; gives that name. Of its functions those in `allowed` are allowed to be run."""
    place = f"users_module_{next(_NUMBERS)}"
    (directory / f"{place}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path, str(directory)])
    monkeypatch.setenv("IGKD_MODULES", ",".join(f"{place}:{name}" for name in allowed))
    return place
