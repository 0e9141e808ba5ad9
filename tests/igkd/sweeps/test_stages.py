"""How far a pipeline has come, read off its directory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from igkd.base.errors import CONTINUES, UserError
from igkd.base.run_directory import STATE
from igkd.networks.network import NetworkSpec, build
from igkd.store.lease import LEASE
from igkd.sweeps.__main__ import main
from igkd.sweeps.stages import describe_stages
from igkd.training.optimizer import make_optimizer
from igkd.training.state import save_state
from tests.helpers.training import recipe

EPOCH = {"train_loss": 1.0, "train_accuracy": 0.5, "validation_loss": 1.0, "validation_accuracy": 0.8125, "seconds": 61.2}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_every_stage_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert describe_stages(tmp_path) == []
    write(tmp_path / "teacher" / "config.json", {"epochs": 40})
    assert describe_stages(tmp_path) == ["teacher: epoch 0 of 40"]
    model = build(NetworkSpec(classes=("a", "b"), image_shape=(16, 16), name="lean:2:8x1"), 0)
    for number, epochs in enumerate((2, 3)):
        directory = tmp_path / "teacher" / "checkpoints" / f"checkpoint_{number}"
        directory.mkdir(parents=True)
        save_state(directory, model, make_optimizer(model, recipe()), [{"epoch": n, **EPOCH} for n in range(1, epochs + 1)])
    assert describe_stages(tmp_path) == ["teacher: epoch 3 of 40, validation 81.25%, 61 s an epoch"]
    (directory / STATE).write_bytes(b"half a file")
    assert describe_stages(tmp_path) == ["teacher: epoch 2 of 40, validation 81.25%, 61 s an epoch"]
    write(tmp_path / "teacher" / "result.json", {"test": {"accuracy": 0.9351}})
    write(tmp_path / "store" / "plan.json", {"rows": 1000, "rows_per_file": 300})
    (tmp_path / "store" / "part-00002.parquet").touch()
    assert describe_stages(tmp_path) == ["teacher: finished, test accuracy 93.51%", "store: 1 of 4 parts"]
    write(tmp_path / "store" / "manifest.json", {})
    write(tmp_path / "store" / "views-plan.json", {"rows": 1000, "rows_per_file": 300})
    assert describe_stages(tmp_path)[1:] == ["store: finished", "views: 0 of 4 parts"]
    monkeypatch.setattr("sys.argv", ["igkd.sweeps", "status", str(tmp_path)])
    assert main() == 1 and capsys.readouterr().out.endswith(f"views: 0 of 4 parts\nstopped; {CONTINUES}\n")
    program = f"from igkd.store import hold\nwith hold({str(tmp_path)!r}): print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None and job.stdout.readline() == "held\n"
        assert main() == 0 and capsys.readouterr().out.endswith("views: 0 of 4 parts\n")
        job.kill()
    assert (tmp_path / LEASE).exists() and main() == 1 and "stopped" in capsys.readouterr().out


def test_a_damaged_plan_is_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "store" / "plan.json", {"rows": "many", "rows_per_file": 0})
    with pytest.raises(UserError, match="plan.json is damaged"):
        describe_stages(tmp_path)
