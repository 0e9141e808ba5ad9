"""A student to explain."""

import pytest

from igkd.networks import checkpoint
from tests.helpers.explanations import SPEC, confident


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> str:
    """A student whose card names its teacher."""
    directory = tmp_path_factory.mktemp("student")
    checkpoint.save(confident(SPEC), directory, {"job": "distill", "config": {"store": "/gone", "teacher": teacher}})
    return str(directory)
