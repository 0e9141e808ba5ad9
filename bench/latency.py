"""A teacher and a cut student by torch, and in ONNX Runtime in float32 and static int8, side by side as igkd.latency times models."""

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from igkd import formats, models, runs
from igkd.config import parse
from igkd.export import CALIBRATION, ExportConfig, as_decoded, export
from igkd.files import write_bytes, write_json
from igkd.images import open_images
from igkd.latency import measure, table, usual_threads
from igkd.samples import load_samples

RUNTIMES = {"": "torch, float32", ".onnx": "ONNX Runtime, float32", "-int8.onnx": "ONNX Runtime, int8"}
"""What a model's name ends in, and what runs it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Latency and memory of teacher and student in each runtime; the student is untrained, which does not change how long it takes."""

    teacher: str = "assets/cifar10-teacher"
    """Directory of a checkpoint."""
    cut: int = 5
    """Of the student; 5 has 4.1 times fewer parameters."""
    images: str | None = None
    """The teacher's training images: its files are then checked, int8's accuracy, too. By default int8 is calibrated on drawn shapes."""
    rounds: int = 20
    """Turns of each model, of 5 passes each."""
    out: str | None = None
    """JSON file for the figures."""


def build(config: Config, directory: Path) -> tuple[list[str], dict[str, Any]]:
    """All models: their paths, teachers first, and the checks of the teacher's files where there are images for one."""
    teacher, paths, checks = models.load(config.teacher), [config.teacher], {}
    student = models.build(replace(teacher.spec, cut=config.cut), 0).eval()
    models.save(student, directory / "student", {})
    samples, _ = load_samples(open_images("shapes"), "train", np.arange(CALIBRATION), teacher.spec.image_shape, resize=True)
    for name, model in (("teacher", teacher), ("student", student)):
        paths += [str(directory / "student")] if name == "student" else []
        for kind, ending in (("onnx", ".onnx"), ("onnx-int8", "-int8.onnx")):
            path = directory / f"{name}{ending}"
            paths.append(str(path))
            if name == "teacher" and config.images is not None:
                given = ExportConfig(checkpoint=config.teacher, format=kind, out=str(path), images=config.images)  # type: ignore[arg-type]
                checks[kind] = export(given)["check"]
                continue
            network = formats.to_onnx(model)
            if kind == "onnx-int8":
                network = formats.to_int8(network, as_decoded(samples))
            write_bytes(path, formats.with_metadata(network, formats.describe(model.spec, {})))
    return paths, checks


def label(path: str, config: Config) -> tuple[str, str]:
    """Which network and which runtime a path stands for."""
    who = "teacher" if path == config.teacher or Path(path).name.startswith("teacher") else f"student, cut {config.cut}, untrained"
    ending = next(ending for ending in ("-int8.onnx", ".onnx", "") if path.endswith(ending))
    return who, RUNTIMES[ending]


def against_teacher(rows: list[dict[str, Any]]) -> None:
    """Add to each row how many times as fast it is as the teacher in the same runtime: the median over rounds."""
    key = ("runtime", "batch", "threads")
    teachers = {tuple(row[k] for k in key): row for row in rows if row["network"] == "teacher"}
    for row in rows:
        pairs = zip(teachers[tuple(row[k] for k in key)]["rounds"], row["rounds"], strict=True)
        row["times_as_fast_as_teacher_in_runtime"] = statistics.median(theirs / own for theirs, own in pairs)


def main() -> None:
    config, started = parse(Config, "bench.latency"), runs.now()
    with tempfile.TemporaryDirectory() as directory:
        paths, checks = build(config, Path(directory))
        rows = measure(paths, (1, 64), usual_threads(), config.rounds)
    for row in rows:
        row["network"], row["runtime"] = label(row["model"], config)
        row["model"] = f"{row['network']}: {row['runtime']}"
    against_teacher(rows)
    print(table(rows))
    print("\ntimes as fast as the teacher in the same runtime (the student's weights are untrained)")
    for row in rows:
        if row["network"] != "teacher":
            ratio = row["times_as_fast_as_teacher_in_runtime"]
            print(f"  {row['runtime']:22} batch {row['batch']:2}, {row['threads']} thread(s)  {ratio:.2f}")
    if config.out:
        write_json(Path(config.out), {"latency": rows, "checks": checks} | runs.provenance(runs.command(), 0, started))


if __name__ == "__main__":
    main()
