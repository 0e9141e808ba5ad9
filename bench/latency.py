"""Latency of a teacher, a cut and a lean student, by torch and by ONNX Runtime in float32 and static int8, in turns as in igkd latency."""

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from igkd.base import provenance
from igkd.base.storage import write_bytes, write_json
from igkd.config.command_line import parse
from igkd.config.export import ExportConfig
from igkd.deployment import formats
from igkd.deployment.export import CALIBRATION, as_decoded, export
from igkd.deployment.latency import measure, table, usual_threads
from igkd.images.open import open_images
from igkd.images.samples import load_samples
from igkd.networks import checkpoint as checkpoints
from igkd.networks.network import build

RUNTIMES: dict[Literal["onnx", "onnx-int8"], str] = {"onnx": "ONNX Runtime, float32", "onnx-int8": "ONNX Runtime, int8"}
"""The runtime of each format."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure latency and memory of teacher and students in each runtime. Students are untrained: that does not change latency."""

    teacher: str = "assets/cifar10-teacher"
    """Directory of a checkpoint."""
    student: str = "mobilenet:cut=5"
    """Network of the first student; cut 5 has 4.1 times fewer parameters than the teacher."""
    lean: str = "lean:4:32x2,48x2,96x2"
    """Network of the second student."""
    images: str | None = None
    """The teacher's training images, to check its files with; by default int8 is calibrated on drawn shapes, and nothing is checked."""
    rounds: int = 20
    """Rounds, of 5 passes of each model."""
    out: str | None = None
    """JSON file for the figures."""


def built_models(config: Config, directory: Path) -> tuple[dict[str, tuple[str, str]], dict[str, Any]]:
    """Path -> (network, runtime) of all models, the teacher by torch first; and the checks of the teacher's files, if there are images."""
    teacher = checkpoints.load(config.teacher)
    samples, _ = load_samples(open_images("shapes"), "train", np.arange(CALIBRATION), teacher.spec.image_shape, resize=True)
    networks = {
        "teacher": teacher,
        config.student: build(replace(teacher.spec, name=config.student), 0).eval(),
        config.lean: build(replace(teacher.spec, name=config.lean), 0).eval(),
    }
    built: dict[str, tuple[str, str]] = {}
    checks: dict[str, Any] = {}
    for number, (name, model) in enumerate(networks.items()):
        checkpoint = config.teacher if model is teacher else str(directory / str(number))
        if model is not teacher:
            checkpoints.save(model, Path(checkpoint), {})
        built[checkpoint] = name, "torch, float32"
        for kind, runtime in RUNTIMES.items():
            path = directory / f"{number}-{kind}.onnx"
            built[str(path)] = name, runtime
            if model is teacher and config.images is not None:
                checks[kind] = export(ExportConfig(checkpoint=checkpoint, format=kind, out=str(path), images=config.images))["check"]
                continue
            network = formats.to_onnx(model)
            if kind == "onnx-int8":
                network = formats.to_int8(network, as_decoded(samples))
            write_bytes(path, formats.with_metadata(network, formats.describe(model.spec, {})))
    return built, checks


def against_teacher(rows: list[dict[str, Any]]) -> None:
    """Add to each row its speed relative to the teacher in the same runtime: the median over rounds."""
    key = ("runtime", "batch", "threads")
    teachers = {tuple(row[k] for k in key): row for row in rows if row["network"] == "teacher"}
    for row in rows:
        pairs = zip(teachers[tuple(row[k] for k in key)]["rounds"], row["rounds"], strict=True)
        row["times_as_fast_as_teacher_in_runtime"] = statistics.median(theirs / own for theirs, own in pairs)


def main() -> None:
    config, started = parse(Config, "python -m bench.latency"), provenance.now()
    with tempfile.TemporaryDirectory() as directory:
        built, checks = built_models(config, Path(directory))
        rows = measure(list(built), (1, 64), usual_threads(), config.rounds)
    for row in rows:
        row["network"], row["runtime"] = built[row["model"]]
        row["model"] = f"{row['network']}: {row['runtime']}"
    against_teacher(rows)
    print(table(rows))
    print("\ntimes as fast as the teacher in the same runtime (the students are untrained)")
    for row in rows:
        if row["network"] != "teacher":
            ratio = row["times_as_fast_as_teacher_in_runtime"]
            print(f"  {row['network']:22} {row['runtime']:22} batch {row['batch']:2}, {row['threads']} thread(s)  {ratio:.2f}")
    if config.out:
        write_json(Path(config.out), {"latency": rows, "checks": checks} | provenance.provenance(provenance.command(), 0, started))


if __name__ == "__main__":
    main()
