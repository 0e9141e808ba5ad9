"""JSON of a stranger of other types than ours: refused in one sentence."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import ray.data  # noqa: F401  # registers Arrow types of its own, as in every job

from igkd.base import run_directory
from igkd.base.storage import filesystem, read_json
from igkd.config.distill import DistillConfig
from igkd.config.recipes import recipe_values
from igkd.store import Store
from igkd.sweeps.ledger import describe, read_rows, read_status
from igkd.sweeps.publish import publish
from tests.helpers.strangers import SWEEP, history, refused, result, sweep

VALUES: list[Any] = [None, 7, "text", [], [1], {}, {"history": 7}, {"history": [7]}, {"history": [{}]}]


ROWS = {
    "history": [{"epoch": 1, "validation_accuracy": "x", "seconds": 1.0}],
    "test": {"accuracy": "x", "correct": 1, "count": 1},
    "provenance": {"versions": [1]},
    "network": 5,
    "seed": 0.5,
    "arm": ["kd"],
    "config": [1],
    "parameters": 1e9,
}


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_any_json_for_a_result(value: Any, tmp_path: Path) -> None:
    refused(lambda: read_rows(sweep(tmp_path, mine=value)), "delete it and run again|no JSON object")


@pytest.mark.parametrize("name", ROWS)
def test_a_result_with_another_type(name: str, tmp_path: Path) -> None:
    assert len(read_rows(sweep(tmp_path / "sound", mine=result(test={"accuracy": float("nan"), "correct": 0, "count": 0})))) == 1
    refused(lambda: read_rows(sweep(tmp_path, mine=result(**{name: ROWS[name]}))), "delete it and run again")


def test_a_result_that_names_no_store(tmp_path: Path) -> None:
    refused(lambda: publish(sweep(tmp_path, mine=result(config={"store": 7}))), "does not say which store")


def test_a_report_drawn_in_another_directory_than_its_sweeps(tmp_path: Path) -> None:
    """Its rows name the store as the sweep's command did."""
    said = "of the store out/store, which is not here: the path is that of the directory"
    refused(lambda: publish(sweep(tmp_path, mine=result(config={"store": "out/store", "teacher": None}))), said)


CONFIG = DistillConfig(store="s", out="o")


def test_json_that_nests_or_is_of_another_kind(tmp_path: Path, finished: str) -> None:
    path = tmp_path / "best.json"
    for text in ("[" * 100_000, '{"a":' * 100_000, "NaN" * 3, "9" * 10_000, "\x00", ""):
        path.write_text(text)
        (tmp_path / "status.json").write_text(text)
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "manifest.json").write_text(text)
        for read in (
            lambda: read_json(path),
            lambda: recipe_values(str(path)),
            lambda: read_status(tmp_path),
            lambda: run_directory.claim(tmp_path, CONFIG, {}),
            lambda: Store.open(str(tmp_path)),
        ):
            refused(read, "is not JSON|is damaged or not ours")
    for text in ("[]", "7", '"x"', "null"):
        for name in ("best.json", "config.json", "status.json"):
            (tmp_path / name).write_text(text)
        refused(lambda: recipe_values(str(path)), "is no recipe")
        refused(lambda: run_directory.claim(tmp_path, CONFIG, {}), "is no JSON object")
        refused(lambda: read_status(tmp_path), "is no JSON object")
    for text in ('{"alpha": NaN}', '{"exponents": [1, Infinity]}', '{"alpha": true}'):
        path.write_text(text)
        refused(lambda: recipe_values(str(path)), "cannot be")


def test_a_status_of_any_time_is_described() -> None:
    for status in (dataclasses.replace(SWEEP, phase="running", updated=1e300, deadline=-1e300, running={"a": -(10**30)}),):
        assert describe(status, [result(cell="a", history=[history(1)[0] | {"seconds": 1e300}])], 0.0)


@pytest.mark.parametrize(
    "uri", ["reference://::file:///x.json", "http://127.0.0.1/x", "ssh://h/x", "simplecache::s3://b/x", "/a::/b", "zip://x"]
)
def test_no_other_file_systems(uri: str) -> None:
    refused(lambda: filesystem(uri), "use a local path or s3://BUCKET/PATH")
