"""The Parquet files that several tests of pictures read."""

from pathlib import Path

import pytest

from tests.helpers.pictures import pngs, write_parquet


@pytest.fixture(params=["beside", "data", "metadata", "plain"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """40 train images in three files (one of them empty) and 5 test images; image i tells i, its label is i * 7 % 10."""
    directory = tmp_path / "data" if request.param == "data" else tmp_path
    names = None if request.param == "plain" else [f"class {i}" for i in range(10)]
    for number, (begin, end) in enumerate([(0, 17), (17, 17), (17, 40)]):
        labels = [i * 7 % 10 for i in range(begin, end)]
        write_parquet(directory / f"train-{number}-of-3.parquet", pngs(end - begin, begin), labels, names, row_group=4)
    write_parquet(directory / "test-0-of-1.parquet", pngs(5, 1000), [1, 2, 3, 4, 5], names)
    (tmp_path / "README.md").write_text("not data")
    return f"parquet:{tmp_path}"
