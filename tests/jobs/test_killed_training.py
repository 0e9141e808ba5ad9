"""Trainings whose driver, worker or node is killed: they go on, and end as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from igkd.base.errors import UserError
from jobs.teacher import train_teacher
from tests.helpers.paths import IMAGES, ROOT
from tests.helpers.programs import Program
from tests.helpers.teachers import configure, weights


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_killed_teacher_goes_on_and_ends_with_the_same_weights(
    trained_longer: Path, tmp_path: Path, kind: signal.Signals, read_until: Callable[..., str], run_job: Program
) -> None:
    out = tmp_path / "teacher"
    arguments = ["--images", IMAGES, "--out", str(out), "--epochs", "6", "--network", "mobilenet:width=0.35"]
    arguments += ["--batch-size", "16", "--learning-rate", "0.02"]
    command = [sys.executable, "-m", "jobs.teacher", *arguments]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    # Ray Train takes a report in some seconds after it was made: the first of these epochs are safe by now.
    read_until(first, "epoch 4/6 done")
    first.send_signal(kind)
    output, _ = first.communicate(timeout=120)
    if kind == signal.SIGINT:
        assert first.returncode == 130, output
    assert not (out / "result.json").exists()
    time.sleep(3)  # for what the killed driver leaves behind to notice
    again = run_job("teacher", *arguments)
    assert again.returncode == 0 and "going on after epoch" in again.stdout, again.stderr
    assert weights(out) == weights(trained_longer)
    row = json.loads((out / "result.json").read_text())
    assert [entry["epoch"] for entry in row["history"]] == [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def trained_longer(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "longer"
    train_teacher(configure(out, epochs=6))
    return out


@pytest.fixture
def read_until() -> Callable[..., str]:
    """Read a process's output until some words appear."""

    def read(process: subprocess.Popen[str], words: str) -> str:
        said = ""
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if words in line:
                return said
        raise AssertionError(f"{words!r} never appeared in:\n{said}")

    return read


@pytest.mark.slow
def test_a_killed_stream_goes_on_with_every_epoch_once(
    cluster: None, toy_store: str, tmp_path: Path, read_until: Callable[..., str], run_job: Program
) -> None:
    out = tmp_path / "student"
    arguments = ["--store", toy_store, "--test-images", IMAGES, "--out", str(out), "--arm", "kd+ig"]
    arguments += ["--ingest", "stream", "--epochs", "6", "--batch-size", "16"]
    command = [sys.executable, "-m", "jobs.distill", *arguments]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    read_until(first, "epoch 4/6 done")
    first.kill()
    first.communicate(timeout=120)
    assert not (out / "result.json").exists()
    time.sleep(3)  # for what the killed driver leaves behind to notice
    again = run_job("distill", *arguments)
    assert again.returncode == 0 and "going on after epoch" in again.stdout, again.stderr
    row = json.loads((out / "result.json").read_text())
    assert [entry["epoch"] for entry in row["history"]] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_list_of_checkpoints_is_told_in_one_sentence(cluster: None, tmp_path: Path) -> None:
    """Our list is replaced in one step (tests/jobs/backend/test_ray_insides.py); a full disk or a copy may damage it all the same."""
    config = configure(tmp_path / "teacher", epochs=1)
    train_teacher(config)
    (tmp_path / "teacher" / "result.json").unlink()
    listed = tmp_path / "teacher" / "checkpoints" / "checkpoint_manager_snapshot.json"
    listed.parent.mkdir(exist_ok=True)
    listed.write_text("")
    with pytest.raises(UserError, match="its list of checkpoints cannot be read; restore it from a copy"):
        train_teacher(config)


ELASTIC = """
import sys
from tests.helpers.teachers import configure
from jobs.teacher import train_teacher
from pathlib import Path
train_teacher(configure(Path(sys.argv[1]), epochs=int(sys.argv[2]), workers=2, min_workers=1))
"""


@pytest.mark.slow
def test_elastic_workers_go_on_without_a_node_that_was_lost(tmp_path: Path, read_until: Callable[..., str]) -> None:
    """In a cluster and a program of its own; after the node is gone one worker does what two did, from the last checkpoint."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150 << 20})
    second = cluster.add_node(num_cpus=1, object_store_memory=150 << 20)
    try:
        cluster.wait_for_nodes()
        environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
        job = subprocess.Popen(
            [sys.executable, "-c", ELASTIC, str(tmp_path / "out"), "40"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said = read_until(job, "epoch 3/40 done")
        assert "2 worker(s)" in said
        cluster.remove_node(second, allow_graceful=False)
        said, _ = job.communicate(timeout=400)
        assert job.returncode == 0, said[-4000:]
        assert "1 worker(s)" in said and "going on after epoch" in said
        row = json.loads((tmp_path / "out" / "result.json").read_text())
        assert [entry["epoch"] for entry in row["history"]] == list(range(1, 41))
    finally:
        cluster.shutdown()
