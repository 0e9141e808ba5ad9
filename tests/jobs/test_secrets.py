"""Real jobs with marked credentials: the marks are in nothing that they leave. And a run that goes on loads no pickle."""

import base64
import os
import pickle
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igkd.base.run_directory import STATE
from igkd.config.precompute import PrecomputeConfig
from tests.helpers.paths import IMAGES
from tests.helpers.programs import run_program
from tests.helpers.stores import make_store

pytestmark = pytest.mark.slow


def forms(mark: str) -> list[bytes]:
    """A mark as it is, in hexadecimal (Tune writes pickles so) and in base64 wherever it begins."""
    plain = mark.encode()
    shifted = [base64.b64encode(bytes(n) + plain)[4 if n else 0 : -4] for n in range(3)]
    return [plain, plain.hex().encode(), *shifted]


def leaks(marks: Iterable[str], files: Iterable[tuple[str, bytes]]) -> list[str]:
    """Names of the files that hold a mark; Parquet is compressed, so it is read."""
    wanted, found = [form for mark in marks for form in forms(mark)], []
    for name, data in files:
        if data[:4] == b"PAR1":
            table = pq.read_table(pa.BufferReader(data))
            data += repr((table.schema.metadata, table.to_pylist())).encode()
        if any(form in data for form in wanted):
            found.append(name)
    return found


def files_under(*directories: Path) -> Iterator[tuple[str, bytes]]:
    for directory in directories:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where Ray keeps its sessions; the names of its sockets must be short."""
    directory = Path(tempfile.mkdtemp(prefix="ig", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def run(temporary: Path) -> Callable[..., str]:
    """Run a job as a user would, on a Ray of its own; gives all that it said."""

    def call(environment: dict[str, str], status: int, job: str, *arguments: str) -> str:
        given = {**os.environ, **environment, "RAY_TMPDIR": str(temporary)}
        done = run_program(f"jobs.{job}", list(arguments), given)
        said = done.stdout + done.stderr
        assert done.returncode == status, said[-3000:]
        return said

    return call


def test_credentials_are_in_nothing_that_jobs_leave(
    s3: Any, teacher: str, run: Callable[..., str], temporary: Path, tmp_path: Path
) -> None:
    key, secret, session, token = (f"{kind}{secrets.token_hex(16)}" for kind in ("KEY", "SECRET", "SESSION", "TOKEN"))
    environment = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": session}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    uri, out = "s3://igkd/marked/store", tmp_path / "out"
    small = ["--images", IMAGES, "--teacher", teacher, "--steps", "2", "--engine", "captum", "--rows-per-file", "50"]
    learn = ["--store", uri, "--test-images", IMAGES, "--epochs", "1"]
    said = [
        run(environment, 0, "precompute", *small, "--store", uri),
        run(environment, 1, "precompute", *small, "--store", "s3://no-such-bucket/store"),
        run(environment, 0, "ablate", *learn, "--out", str(out / "grid"), "--arms", "kd", "--seeds", "0", "--teacher", teacher),
        run(environment, 0, "distill", *learn, "--out", str(out / "one")),
        run(environment, 1, "precompute", *small, "--store", f"s3://{key}:{secret}@igkd/store"),
    ]
    assert "credentials are not typed" in said[-1]
    names = [one["Key"] for one in s3.list_objects_v2(Bucket="igkd", Prefix="marked/")["Contents"]]
    objects = [(name, s3.get_object(Bucket="igkd", Key=name)["Body"].read()) for name in names]
    written = list(files_under(out, temporary))
    ends = {Path(name).name for name, _ in (*written, *objects)}
    assert {"manifest.json", "part-00000.parquet", "report.html", "table.md", "result.json", "rows.jsonl", "config.json"} <= ends
    assert any("/logs/" in name for name, _ in written) and any("/tune/" in name for name, _ in written)
    assert leaks((key, secret, session, token), [*enumerate_text(said), *objects, *written]) == []
    # And they would be found.
    assert leaks((secret,), [("a", b"x" + secret.encode().hex().encode()), ("b", base64.b64encode(b"yy" + secret.encode()))]) == ["a", "b"]
    assert leaks((IMAGES,), objects) and leaks(("kd-mobilenet-cut-5-seed0",), written) and leaks(("no-such-bucket",), enumerate_text(said))


def enumerate_text(said: list[str]) -> list[tuple[str, bytes]]:
    return [(f"output {number}", text.encode()) for number, text in enumerate(said)]


class Payload:
    """Makes a directory when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_pickles_in_a_runs_directory_are_not_loaded(
    cluster: None, run_job: Callable[..., subprocess.CompletedProcess[str]], teacher: str, tmp_path: Path
) -> None:
    """All that Tune and Train have left there is replaced, and more of the kind that either once looked for is added."""
    out, marker = tmp_path / "out", tmp_path / "it ran"
    made = PrecomputeConfig(images=IMAGES, teacher=teacher, store=str(tmp_path / "store"), steps=2, engine="captum", rows_per_file=50)
    make_store(made)
    learn = ["--store", made.store, "--test-images", IMAGES]
    grid = ["ablate", *learn, "--epochs", "1", "--out", str(out / "grid"), "--arms", "student", "--seeds", "0"]
    one = ["distill", *learn, "--epochs", "2", "--out", str(out / "one")]
    assert run_job(*grid).returncode == 0
    assert run_job(*one).returncode == 0
    (out / "one" / "result.json").unlink()  # as if it had been killed between its last epoch and the end
    data, replaced = pickle.dumps(Payload(marker)), 0
    for path in [*(out / "grid" / "tune").rglob("*"), *(out / "one").rglob("*")]:
        if path.is_file() and path.suffix in (".pkl", ".pickle", ".pt") or path.name.startswith("experiment_state"):
            path.write_bytes(data)
            replaced += 1
    for directory in (out / "grid", out / "grid" / "tune", out / "one", out / "one" / "checkpoints"):
        for name in ("tuner.pkl", "trainer.pkl", "trainable.pkl", "searcher-state.pkl", "checkpoint.pt"):
            (directory / name).write_bytes(data)
    assert replaced >= 2
    assert run_job(*grid, "1").returncode == 0
    assert run_job(*one).returncode == 0
    assert (out / "grid" / "students" / "student-mobilenet-cut-5-seed1" / "result.json").exists() and (out / "one" / "result.json").exists()
    assert not marker.exists()
    states = list((out / "one" / "checkpoints").rglob(STATE))
    assert states
    (out / "one" / "result.json").unlink()
    for path in states:
        path.write_bytes(data)
    for path in (out / "one" / "checkpoints").rglob("model.safetensors"):
        path.write_bytes(data)
    refused = run_job(*one)
    assert refused.returncode == 1 and "error: " in refused.stderr and not marker.exists()
    pickle.loads(data)
    assert marker.exists()  # so it would have been seen
