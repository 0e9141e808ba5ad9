"""Hashes of what the jobs make. A change that claims to alter nothing must give the same hashes before and after it, on one machine.

python -m bench.fingerprint --out before.json      (at the commit before)
python -m bench.fingerprint --out after.json --compare before.json
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy

from igkd.base.storage import write_json
from igkd.config.command_line import parse
from igkd.store import Store, to_numpy

IMAGES = "shapes:train=300,test=60"
TEACHER = ["--epochs", "1", "--network", "mobilenet:width=0.5,stride=2", "--batch-size", "32"]
STUDENTS = {
    "kd+ig": ["--arm", "kd+ig", "--logits", "image", "--overlay", "0.5"],
    "at": ["--arm", "at"],
    "kd with views": ["--arm", "kd", "--logits", "views"],
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Make a teacher, a store, three students and a tiny sweep from built-in pictures, and hash the results."""

    out: str
    """JSON file to write the hashes to."""
    compare: str | None = None
    """A file of hashes from another commit; the exit status is 1 if they differ."""


def run(job: str, *flags: str) -> None:
    """Run a job by its command line."""
    subprocess.run([sys.executable, "-m", f"jobs.{job}", *flags], check=True)


def hash_of(value: bytes) -> str:
    """The first half of the sha256, in hexadecimal."""
    return hashlib.sha256(value).hexdigest()[:32]


def weights(directory: Path) -> str:
    """Hash of a checkpoint's tensors, in the order of their names."""
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    return hash_of(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors)))


def columns(uri: str) -> dict[str, str]:
    """Hash of each column of a store."""
    found = {}
    for name in ("image_id", "label", "image_sha", "validation", "ig", "ig_delta", "logits", "attention"):
        values = [to_numpy(table.column(name)) for table in Store.open(uri).tables((name,))]
        found[name] = hash_of(b"".join(v.tobytes() if v.dtype != object else repr(v.tolist()).encode() for v in values))
    samples, _ = Store.open(uri).samples(views=True)
    assert samples.signals["views"] is not None
    return found | {"views": hash_of(samples.signals["views"].numpy().tobytes())}


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run, without times."""
    return {"history": [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in row["history"]], "test": row["test"]["accuracy"]}


def results(root: Path) -> dict[str, Any]:
    """Run the jobs in a directory; gives all hashes and figures that are compared."""
    teacher, store = root / "teacher", str(root / "store")
    run("teacher", "--images", IMAGES, "--out", str(teacher), *TEACHER)
    run("precompute", "--images", IMAGES, "--teacher", str(teacher), "--store", store, "--limit", "100", "--steps", "8", "--views", "all",
        "--rows-per-file", "30", "--engine", "torch")  # fmt: skip
    found: dict[str, Any] = {"teacher": weights(teacher), "store": columns(store)}
    for name, flags in STUDENTS.items():
        out = root / "students" / name.replace(" ", "-")
        run("distill", "--store", store, "--test-images", IMAGES, "--epochs", "2", "--workers", "1", "--out", str(out), *flags)
        found[name] = {"weights": weights(out)} | figures(json.loads((out / "result.json").read_text()))
    sweep = root / "sweep"
    run("ablate", "--store", store, "--test-images", IMAGES, "--epochs", "1", "--grids", "arms", "--arms", "student", "kd", "--seeds", "0",
        "--out", str(sweep))  # fmt: skip
    rows = [json.loads(line) for line in (sweep / "rows.jsonl").read_text().splitlines()]
    found["sweep"] = {row["config"]["arm"]: figures(row) for row in rows}
    return found


def main() -> int:
    config = parse(Config, "python -m bench.fingerprint")
    with tempfile.TemporaryDirectory() as directory:
        found = results(Path(directory))
    write_json(Path(config.out), found)
    print(json.dumps({name: value if isinstance(value, str) else value.get("weights", "") for name, value in found.items()}, indent=1))
    if config.compare is None:
        return 0
    before = json.loads(Path(config.compare).read_text())
    differing = [name for name in found.keys() | before.keys() if found.get(name) != before.get(name)]
    print(f"differing: {', '.join(sorted(differing))}" if differing else "all the same", flush=True)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
