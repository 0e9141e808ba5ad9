"""Stores that tests damage, and those with views."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.stores import add_views


@pytest.fixture
def copy(finished: str, tmp_path: Path) -> Path:
    """A sound store that may be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture(scope="module")
def viewed(finished: str, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two copies of a store, with the logits of all crops and of five."""
    found = {}
    for asked in ("all", "5"):
        found[asked] = str(tmp_path_factory.mktemp("viewed") / "store")
        shutil.copytree(finished, found[asked])
        add_views(found[asked], teacher, asked)
    return found
