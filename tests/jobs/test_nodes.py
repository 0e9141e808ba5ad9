"""Several nodes: those that join take part, those that leave cost their unfinished work alone, and each does what it is there for."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from igkd.base.run_directory import STATE
from igkd.base.storage import filesystem
from igkd.store import verify
from igkd.sweeps.ledger import read_rows
from igkd.training.state import read_history
from tests.helpers.marks import marks, processes
from tests.helpers.nodes import Nodes
from tests.helpers.paths import IMAGES, ROOT

PARTS = 40


@pytest.fixture
def nodes(s3: Any, own_ray: None) -> Iterator[Nodes]:
    one = Nodes()
    yield one
    one.cluster.shutdown()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def started(command: list[str], nodes: Nodes, log: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "RAY_ADDRESS": nodes.cluster.address, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)


def precompute(place: Path, teacher: str, uri: str, nodes: Nodes, parts: int = PARTS) -> "subprocess.Popen[bytes]":
    program = "from tests.helpers.marks import main; main()"
    return started([sys.executable, "-c", program, str(place), teacher, uri, str(parts)], nodes, place.parent / "log")


def wait_until(job: "subprocess.Popen[bytes]", seen: Callable[[], bool], log: Path) -> None:
    for _ in range(6000):
        if seen():
            return
        assert job.poll() is None, log.read_text()[-4000:]
        time.sleep(0.05)
    raise AssertionError(log.read_text()[-4000:])


def finish(job: "subprocess.Popen[bytes]", log: Path) -> None:
    try:
        assert job.wait(300) == 0, log.read_text()[-4000:]
    finally:
        job.kill()


def written(uri: str) -> dict[str, Any]:
    """Name of every part to what changes when it is written again."""
    fs, root = filesystem(uri)
    if not fs.exists(root):
        return {}
    found = fs.ls(root, detail=True, refresh=True) if "://" in uri else fs.ls(root, detail=True)
    return {info["name"].rsplit("/", 1)[-1]: info.get("mtime") or info["LastModified"] for info in found if "/part-" in info["name"]}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "S3"])
def test_a_node_that_joins_takes_part_and_one_that_leaves_costs_only_what_it_had_not_finished(
    nodes: Nodes, place: Path, teacher: str, tmp_path: Path, where: str
) -> None:
    uri, log = (str(tmp_path / "store") if where == "disk" else "s3://igkd/nodes"), tmp_path / "log"
    first = nodes.add(1)
    job = precompute(place, teacher, uri, nodes)
    wait_until(job, lambda: len(written(uri)) >= 2, log)
    second = nodes.add(1)
    wait_until(job, lambda: marks(place, "attribute").count(second) >= 2, log)
    nodes.remove(0)
    done, begun = written(uri), len(marks(place, "attribute"))
    assert len(done) < PARTS - 5, "the job was too fast for what was to happen"
    finish(job, log)
    assert verify(uri) == []
    after, attributed = written(uri), marks(place, "attribute")
    assert len(after) == PARTS and all(after[name] == done[name] for name in done)  # nothing that was there is written again
    assert set(attributed) == {first, second}
    # The lost node's one task, and what had begun but was not in place when we looked.
    assert len(attributed) <= PARTS + begun - len(done)


@pytest.mark.slow
def test_nodes_without_a_gpu_read_and_those_with_one_attribute(nodes: Nodes, place: Path, teacher: str, tmp_path: Path) -> None:
    """By Ray's books, which is what places tasks; there is no GPU here, and the processor does what it would."""
    uri, log, parts = str(tmp_path / "store"), tmp_path / "log", 30
    reader, gpu = nodes.add(2), nodes.add(1, num_gpus=1)
    job = precompute(place, teacher, uri, nodes, parts)
    wait_until(job, lambda: len(written(uri)) >= 2, log)
    another = nodes.add(1, num_gpus=1)
    finish(job, log)
    assert verify(uri) == []
    assert reader in marks(place, "read")  # as are the processors of the others, which have nothing else to do
    assert set(marks(place, "attribute")) == {gpu, another} and len(marks(place, "attribute")) == parts
    assert len(processes(place, "attribute")) <= parts / 3  # which keep their teacher; one a GPU where nothing disturbs them


@pytest.mark.slow
def test_a_sweep_goes_on_when_a_node_is_lost(nodes: Nodes, tmp_path: Path, toy_store: str) -> None:
    """The run that it had goes on elsewhere, from the state of its last epoch."""
    out, log = tmp_path / "out", tmp_path / "log"
    nodes.add(1)
    nodes.add(1)
    command = [sys.executable, "-m", "jobs.ablate", "--store", toy_store, "--test-images", IMAGES, "--out", str(out)]
    job = started([*command, "--arms", "student", "--seeds", "0", "1", "--epochs", "60"], nodes, log)
    students = [out / "students" / f"student-mobilenet-cut-5-seed{seed}" for seed in (0, 1)]
    wait_until(job, lambda: all((path / STATE).exists() and len(read_history(path)) > 2 for path in students), log)
    nodes.remove(1)
    finish(job, log)
    said = log.read_text()
    assert said.count("failed and is tried again") == 1, said[-4000:]
    rows = read_rows(out)
    assert {row["cell"] for row in rows} == {path.name for path in students}
    assert all([entry["epoch"] for entry in row["history"]] == list(range(1, 61)) for row in rows)
