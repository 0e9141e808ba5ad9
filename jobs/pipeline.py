"""All of it: python -m jobs.pipeline --preset demo --out DIR"""

import functools
from pathlib import Path
from typing import Any

import ray

from igkd import report, runs, store
from igkd.config import Pipeline, PipelineConfig, parse
from igkd.files import absolute, write_bytes, write_json
from igkd.images import open_images
from igkd.presets import make_pipeline
from igkd.showcase import Showcase, load_students
from igkd.tasks import check_test_images
from igkd.teachers import open_teacher
from jobs.distill import distill
from jobs.precompute import precompute_store
from jobs.runtime import run_job, side_by_side, start_ray
from jobs.teacher import train_teacher


def run(config: PipelineConfig) -> Path:
    """Run what is not done yet; gives the path of the report."""
    pipeline = make_pipeline(config)
    source = open_images(pipeline.precompute.images)
    check_test_images(pipeline.precompute.images, source.classes)
    start_ray()
    if pipeline.teacher is None:
        teacher = given_teacher(pipeline.precompute.teacher)
    else:
        teacher = side_by_side([functools.partial(train_teacher, pipeline.teacher)])[0]
    precompute_store(pipeline.precompute)
    at_once = runs_at_once(pipeline.students[0].workers)
    students: list[dict[str, Any]] = []
    for start in range(0, len(pipeline.students), at_once):
        group = pipeline.students[start : start + at_once]
        students += side_by_side([functools.partial(distill, one, len(group)) for one in group])
    return write_report(config, pipeline, teacher, students)


def runs_at_once(workers: int) -> int:
    """How many small trainings go on side by side: start-ups then overlap with work, and three fill one GPU better than one."""
    resources = ray.cluster_resources()
    return max(1, int(3 * resources["GPU"] if resources.get("GPU") else resources.get("CPU", 1) + 1) // workers)


def given_teacher(directory: str) -> dict[str, Any]:
    """The result row of a teacher that was trained elsewhere, from its checkpoint's JSON."""
    card = open_teacher(directory)[1]
    made = card["made"]
    unknown = {"accuracy": float("nan"), "correct": 0, "count": 0, "loss": float("nan")}
    return {
        "name": "teacher",
        "seed": None,
        "history": made.get("history", []),
        "test": made.get("test", unknown),
        "parameters": card["parameters"],
        "multiply_adds": card["multiply_adds"],
        "compression": 1.0,
        "provenance": made.get("provenance", {}),
    }


def write_report(config: PipelineConfig, pipeline: Pipeline, teacher: dict[str, Any], students: list[dict[str, Any]]) -> Path:
    """Draw OUT/report.html from the rows, which also go into OUT/results.json."""
    print("pipeline: drawing the report", flush=True)
    opened = store.Store.open(absolute(pipeline.precompute.store))
    networks = load_students(students, [Path(one.out) for one in pipeline.students])
    show = Showcase(opened, open_teacher(pipeline.precompute.teacher)[0], networks, pipeline.images_per_class)
    validation = opened.column("validation")
    page = report.Report(
        title=f"Distillation on {source_name(pipeline.precompute.images)}",
        summary_note=f"Students learn from {int((~validation).sum()):,} images whose maps, logits and attention the teacher gave once, "
        f"with {opened.plan.steps} integration steps; {int(validation.sum()):,} more are the validation split.",
        teacher=teacher,
        students=students,
        gallery=show.gallery(),
        focus=show.focus(),
        latency=show.latency(),
        store=store.describe(opened.uri),
        commands=[runs.command()],
    )
    out = Path(config.out)
    write_json(out / "results.json", [teacher, *students])
    write_bytes(out / "report.html", report.render(page).encode())
    print(report.summary_table(page))
    print(f"\nreport: {(out / 'report.html').resolve()}")
    return out / "report.html"


def source_name(images: str) -> str:
    """What a data set is called in a title: the last part of its path, or the kind of source."""
    kind, _, rest = images.partition(":")
    return rest.rstrip("/").rsplit("/", 1)[-1] if kind in ("parquet", "folder") else kind


def main() -> None:
    run(parse(PipelineConfig, "jobs.pipeline"))


if __name__ == "__main__":
    run_job(main)
