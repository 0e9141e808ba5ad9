"""Small stores of random rows."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(finished: str, tmp_path: Path) -> Path:
    """A sound store that may be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))
