"""Sweeps as MLflow and Weights & Biases see them."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.tune

from igkd.base.errors import UserError
from igkd.config.sweeps import AblateConfig
from igkd.sweeps.ledger import read_rows
from jobs.ablate import ablate
from jobs.backend.trackers import HOOKS, Secondary, trackers

BLOCK = 32768


def records(path: Path) -> Iterator[bytes]:
    """The records of a file of an offline run: LevelDB's log format after a header of 7 bytes (the first block is shorter by that)."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = BLOCK - place % BLOCK
        if room < 7:
            place += room
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


def offline_history(path: Path, name: str) -> list[Any]:
    """The values of a metric in a file of an offline run."""
    from wandb.proto import wandb_internal_pb2

    values = []
    for data in records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        values += [json.loads(items[name])] if name in items else []
    return values


def test_a_sweep_is_logged_to_both(cluster: None, toy_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow into a directory, Weights & Biases into the files that `wandb sync` uploads."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    out = tmp_path / "night"
    assert ablate(AblateConfig(store=toy_store, out=str(out), epochs=2, arms=("student",), seeds=(0, 1))) == 0
    expected = sorted([entry["validation_accuracy"] for entry in row["history"]] for row in read_rows(out))

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    client = mlflow.MlflowClient(f"file://{tmp_path}/mlflow")
    runs = client.search_runs([client.get_experiment_by_name("night").experiment_id])
    seen = [[metric.value for metric in client.get_metric_history(run.info.run_id, "validation_accuracy")] for run in runs]
    assert sorted(seen) == expected
    assert sorted(offline_history(path, "validation_accuracy") for path in out.glob("wandb/offline-run-*/*.wandb")) == expected


def test_only_what_the_environment_asks_for_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert trackers(Path("x")) == []
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert trackers(Path("x")) == []
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert [tracker.name for tracker in trackers(Path("x")) if isinstance(tracker, Secondary)] == ["wandb"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///nowhere")
    assert trackers(Path("x")) == []
    assert capsys.readouterr().out.splitlines() == [
        "sweep: MLFLOW_TRACKING_URI is set, but mlflow is not installed, so nothing is logged to it: pip install mlflow",
        "sweep: WANDB_MODE is set, but wandb is not installed, so nothing is logged to it: pip install wandb",
    ]


@pytest.mark.parametrize("uri", ["nonsense://x", "http://127.0.0.1:9"])
def test_a_tracker_that_cannot_be_used_is_one_sentence_before_anything_runs(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="mlflow cannot be used as MLFLOW_TRACKING_URI says .*: correct it, or unset it") as caught:
        trackers(Path("x"))
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(UserError, match="wandb cannot be used as WANDB_MODE says .*offline.*: correct it, or unset it"):
        trackers(Path("x"))


def test_a_tracker_that_fails_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(ray.tune.Callback):
        called = 0

        def on_trial_result(self, *args: Any, **info: Any) -> None:
            self.called += 1
            raise ConnectionError("the server is gone\nand more")

    broken = Broken()
    tracker: Any = Secondary(broken, "mlflow")
    assert {name for name in dir(ray.tune.Callback) if name.startswith("on_")} == set(HOOKS)
    for _ in range(3):
        tracker.on_trial_start(1, [], None)
        tracker.on_trial_result(1, [], None, {})
    assert broken.called == 1
    assert capsys.readouterr().out == "sweep: mlflow failed (the server is gone and more); the sweep goes on without it\n"
