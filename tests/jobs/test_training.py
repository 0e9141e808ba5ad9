"""Teacher and student on real Ray Train."""

import collections
import functools
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
import torch
from numpy.typing import NDArray
from torch import Tensor

import jobs.backend.training
import jobs.pipeline
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.evaluate import EvaluateConfig
from igkd.config.pipeline import PipelineConfig
from igkd.config.teacher import TeacherConfig
from igkd.evaluation.evaluate import evaluate_images
from igkd.images.samples import Samples
from igkd.networks import checkpoint as checkpoints
from igkd.networks.network import parameter_count
from igkd.training.batches import Batch, Resident
from igkd.training.loop import Diverged
from igkd.training.state import read_history
from igkd.training.student_data import distill_task, open_store
from igkd.training.task import Task
from igkd.training.teacher_data import teacher_task
from jobs.backend.ingest import Stream, training_dataset
from jobs.backend.runtime import fit
from jobs.backend.sentences import one_sentence
from jobs.backend.training import train_worker
from jobs.distill import distill
from jobs.teacher import train_teacher
from tests.helpers.paths import IMAGES
from tests.helpers.pictures import pictures
from tests.helpers.programs import Program
from tests.helpers.teachers import configure, weights


@pytest.fixture(scope="module")
def trained(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "teacher"
    train_teacher(configure(out))
    return out


def test_result_row_says_what_was_done(trained: Path) -> None:
    row = json.loads((trained / "result.json").read_text())
    assert [entry["epoch"] for entry in row["history"]] == [1, 2]
    assert row["images"] == {"train": 90, "validation": 10, "left_out": 0}
    assert row["test"]["count"] == 30
    assert row["parameters"] == parameter_count(checkpoints.load(trained))
    assert set(row["provenance"]) == {"command", "commit", "seed", "versions", "machine", "started", "seconds"}


def test_finished_run_is_not_run_again_and_another_configuration_is_refused(cluster: None, trained: Path) -> None:
    before = weights(trained), (trained / "result.json").stat().st_mtime_ns
    train_teacher(configure(trained))
    assert (weights(trained), (trained / "result.json").stat().st_mtime_ns) == before
    with pytest.raises(UserError, match="another configuration .*epochs was 2 and is now 3"):
        train_teacher(configure(trained, epochs=3))
    with pytest.raises(UserError, match="images_fingerprint"):
        train_teacher(configure(trained, images="shapes:train=101,test=30"))


@pytest.mark.parametrize("job", ["teacher", "pipeline"])
def test_a_job_that_is_started_twice_runs_once(job: str, tmp_path: Path, run_job: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    said = []

    def meanwhile(*args: Any) -> None:
        """In place of the first one's work: the same command in another terminal."""
        arguments = ["--images", IMAGES] if job == "teacher" else ["--preset", "demo", "--images", IMAGES]
        said.append(run_job(job, "--out", str(out), *arguments))
        raise UserError("enough")

    monkeypatch.setattr(*((jobs.backend.training, "fit") if job == "teacher" else (jobs.pipeline, "start_ray")), meanwhile)
    with pytest.raises(UserError, match="enough"):
        if job == "teacher":
            train_teacher(TeacherConfig(images=IMAGES, out=str(out)))
        else:
            jobs.pipeline.run(PipelineConfig(preset="demo", images=IMAGES, out=str(out)))
    assert said[0].returncode == 1 and "epoch 1" not in said[0].stdout
    sentence = rf"error: {out} is being computed by another job \(process {os.getpid()} on .*\); wait for it, or stop it first\n"
    assert re.fullmatch(sentence, said[0].stderr)
    assert not (out / "lease.json").exists() and not (out / "checkpoints").exists()


class RecordingSamples(Samples):
    """Samples that write down, per process, which images a step took."""

    log: Path

    def select(self, rows: NDArray[Any], index: Tensor | None = None) -> Samples:
        chosen = super().select(rows, index)
        with (self.log / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(chosen.ids.tolist()) + "\n")
        return chosen


def recording_task(config: TeacherConfig, log: Path) -> Task:
    task = teacher_task(config)
    assert task.train is not None
    recording = RecordingSamples(task.train.ids, task.train.pixels, task.train.labels)
    object.__setattr__(recording, "log", log)
    return Task(**{**vars(task), "train": recording})


def test_two_workers_see_every_image_exactly_once_an_epoch(cluster: None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    task = functools.partial(recording_task, configure(tmp_path / "out"), log)
    checkpoint = fit(train_worker, {"task": task, "name": "test"}, tmp_path / "out", workers=2)
    logs = [[json.loads(line) for line in path.read_text().splitlines()] for path in log.iterdir()]
    assert len(logs) == 2
    assert all(len(steps) == 12 for steps in logs)  # 90 images in six batches, twice
    for epoch in range(2):
        seen = collections.Counter(i for steps in logs for step in steps[6 * epoch : 6 * epoch + 6] for i in step)
        assert set(seen.values()) == {1}
        assert len(seen) == teacher_task(configure(tmp_path)).count == 90
    assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(*logs, strict=True))
    assert len(read_history(checkpoint)) == 2


def watched_worker(loop_config: dict[str, Any]) -> None:
    """A worker that writes down which images its stream gives."""
    epochs = Stream.epoch

    def watched(self: Stream, epoch: int) -> Iterator[Batch]:
        for batch in epochs(self, epoch):
            with (loop_config["log"] / f"{self.rank}.jsonl").open("a") as file:
                file.write(json.dumps([epoch, batch.size, batch.samples.ids.tolist()]) + "\n")
            yield batch

    Stream.epoch = watched  # type: ignore[method-assign]
    train_worker(loop_config)


@pytest.mark.slow
def test_a_stream_gives_every_image_once_an_epoch_in_another_order(cluster: None, toy_store: str, tmp_path: Path) -> None:
    config = DistillConfig(
        store=toy_store, test_images=IMAGES, out=str(tmp_path / "out"), arm="kd+ig+at", epochs=2, ingest="stream", workers=2, batch_size=16
    )
    (tmp_path / "log").mkdir()
    loop_config = {"task": functools.partial(distill_task, config), "name": "test", "log": tmp_path / "log"}
    store = open_store(config)
    checkpoint = fit(watched_worker, loop_config, tmp_path / "out", 2, stream=functools.partial(training_dataset, config, store))
    logs = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted((tmp_path / "log").iterdir())]
    training = sorted(store.column("image_id")[~store.column("validation")].tolist())
    orders = []
    for epoch in (1, 2):
        seen = [[ids for e, _, ids in steps if e == epoch] for steps in logs]
        assert [len(ids) for ids in seen[0]] == [len(ids) for ids in seen[1]] and len(seen[0]) == 6
        assert sorted(i for steps in seen for ids in steps for i in ids) == training
        orders.append(seen)
    assert orders[0] != orders[1] and all(size == 2 * len(ids) for steps in logs for _, size, ids in steps)
    first = orders[0][0][0]
    assert first != sorted(first)  # not as the store has them
    history = read_history(checkpoint)
    assert len(history) == 2 and np.isfinite([row["train_loss"] for row in history]).all()


def dying_worker(loop_config: dict[str, Any]) -> None:
    """A worker that is killed once in the middle of the second epoch."""
    epochs = Resident.epoch

    def mortal(self: Resident, epoch: int) -> Iterator[Batch]:
        for step, batch in enumerate(epochs(self, epoch)):
            if epoch == 2 and step == 3 and not loop_config["died"].exists():
                loop_config["died"].touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    Resident.epoch = mortal  # type: ignore[method-assign]
    train_worker(loop_config)


@pytest.mark.slow
def test_a_run_survives_a_killed_worker_and_ends_with_the_same_weights_bit_for_bit(cluster: None, trained: Path, tmp_path: Path) -> None:
    task = functools.partial(teacher_task, configure(tmp_path / "out"))
    loop_config = {"task": task, "name": "test", "died": tmp_path / "died"}
    checkpoint = fit(dying_worker, loop_config, tmp_path / "out", workers=1)
    assert (tmp_path / "died").exists()
    assert [row["epoch"] for row in read_history(checkpoint)] == [1, 2]
    assert weights(checkpoint / "model") == weights(trained)


def test_student_learns_from_the_store_in_every_way_at_once(cluster: None, toy_store: str, tmp_path: Path) -> None:
    config = DistillConfig(
        store=toy_store, test_images=IMAGES, out=str(tmp_path / "student"), arm="kd+ig+at", student="mobilenet:cut=5", epochs=2, overlay=0.5
    )
    row = distill(config)
    student = checkpoints.load(tmp_path / "student")
    assert student.spec.name == "mobilenet:cut=5,width=0.35"
    assert np.isfinite([entry["train_loss"] for entry in row["history"]]).all()
    assert row["compression"] > 3
    with pytest.raises(UserError, match="another configuration .*arm was"):
        distill(DistillConfig(**{**vars(config), "arm": "kd"}))
    with pytest.raises(UserError, match=r"layer features.9.*needs features.4.*--student mobilenet:cut=9"):
        distill(DistillConfig(**{**vars(config), "student": "mobilenet:cut=9", "out": str(tmp_path / "other")}))
    with pytest.raises(UserError, match="classes"):
        distill(DistillConfig(**{**vars(config), "test_images": f"folder:{two_classes(tmp_path)}", "out": str(tmp_path / "other")}))


def test_a_truncated_test_picture_is_told_before_anything_is_trained_and_the_run_goes_on_without_it(
    cluster: None, toy_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = pictures(tmp_path / "images", "test", 30)
    config = DistillConfig(store=toy_store, test_images=images, out=str(tmp_path / "out"), arm="student", epochs=1)
    path = next(tmp_path.rglob("004.png"))
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(UserError, match="004.png.*--bad-images skip"):
        distill(config)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    path.unlink()
    row = distill(config)
    assert (row["test"]["count"], row["test"]["left_out"]) == (29, 0)
    # The classes of a folder are in another order than the store's.
    again = evaluate_images(EvaluateConfig(checkpoint=config.out, images=images))["evaluation"]
    assert again["correct"] == row["test"]["correct"] and again["per_class"] == row["test"]["per_class"]
    path.write_bytes(whole)
    assert distill(config)["test"] == row["test"]
    assert "was judged by other test images" in capsys.readouterr().out


def test_an_error_of_ours_in_a_worker_ends_the_run_at_once_in_one_sentence(cluster: None, run_job: Program, tmp_path: Path) -> None:
    pictures(tmp_path, "test", 10)
    images = pictures(tmp_path, "train", 40)
    path = next((tmp_path / "train").rglob("017.png"))
    path.write_bytes(path.read_bytes()[:200])
    done = run_job(
        "teacher",
        "--images",
        images,
        "--out",
        str(tmp_path / "out"),
        "--epochs",
        "1",
        "--network",
        "mobilenet:width=0.35",
        "--workers",
        "2",
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said, said
    errors = [line for line in said.splitlines() if "017.png" in line]
    assert len(errors) == 1 and errors[0].startswith("error: ") and "--bad-images skip" in errors[0], said


def refusing_worker(loop_config: dict[str, Any]) -> None:
    """A worker of two, of which one refuses to go on while the other waits for it."""
    rank = ray.train.get_context().get_world_rank()
    with one_sentence():
        (loop_config["log"] / f"{rank}-{os.getpid()}").touch()
        if rank == 0:
            raise Diverged("the loss became nan")
        torch.distributed.barrier()


def test_a_worker_that_refuses_is_not_started_again(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(UserError, match="^the loss became nan$"):
        fit(refusing_worker, {"log": tmp_path / "log"}, tmp_path / "out", 2)
    assert sorted(path.name[0] for path in (tmp_path / "log").iterdir()) == ["0", "1"]


def two_classes(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "two" / name).mkdir(parents=True)
        (tmp_path / "two" / name / "x.png").write_bytes(b"")
    return tmp_path / "two"
