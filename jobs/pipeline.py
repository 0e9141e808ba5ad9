"""All of it: python -m jobs.pipeline --preset demo --out DIR"""

import functools
from pathlib import Path
from typing import Any

from igkd import report, runs, store
from igkd.config import Pipeline, PipelineConfig, parse
from igkd.errors import UserError
from igkd.files import absolute, write_bytes, write_json
from igkd.images import open_images
from igkd.page import source_name
from igkd.presets import make_pipeline
from igkd.showcase import Showcase, load_students
from igkd.sweeps.grid import Cell
from igkd.sweeps.ledger import STATUS, read_rows
from igkd.sweeps.publish import publish
from igkd.tasks import check_test_images, ingest_of, open_store
from igkd.teachers import open_teacher
from jobs.ablate import train_cells
from jobs.distill import distill
from jobs.precompute import precompute_store
from jobs.runtime import in_thread, run_job, start_ray
from jobs.teacher import train_teacher

COMPARISONS = "comparisons.html"
"""What may be said of arms that have several seeds."""
RUNS_PER_GPU = 3
"""Small trainings fill a GPU better together."""


def run(config: PipelineConfig) -> Path:
    """Run what is not done yet; gives the path of the report.

    Raises:
        UserError: a job cannot be run, or another one is at work in this directory.
    """
    pipeline = make_pipeline(config)
    source = open_images(pipeline.precompute.images)
    check_test_images(pipeline.precompute.images, source.classes)
    with store.hold(config.out):
        start_ray()
        if pipeline.teacher is None:
            teacher = given_teacher(pipeline.precompute.teacher)
        else:
            teacher = in_thread(functools.partial(train_teacher, pipeline.teacher))
        precompute_store(pipeline.precompute)
        return write_report(config, pipeline, teacher, run_students(config.out, pipeline))


def run_students(out: str, pipeline: Pipeline) -> list[dict[str, Any]]:
    """Train all students: each in one process, as many at a time as fit; where one needs several workers, or more memory than there is,
    one after the other.

    Raises:
        UserError: some could not be trained.
    """
    students = pipeline.students
    if any(one.workers > 1 or ingest_of(one, open_store(one)) == "stream" for one in students):
        return [in_thread(functools.partial(distill, one)) for one in students]
    grid = [Cell(label=one.label, config=one) for one in students]
    if not train_cells(grid, out, RUNS_PER_GPU, page=COMPARISONS):
        raise UserError("not all students could be trained, see above; the same command tries those again that are missing")
    rows = {row["cell"]: row for row in read_rows(Path(out))}
    for row in (rows[cell.name] for cell in grid):
        if row["state"] == "diverged":
            raise UserError(f"student {row['cell']} has no network: {row['error']}; delete {out}/students/{row['cell']} to try it again")
    return [rows[cell.name] for cell in grid]


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
    per_class = pipeline.images_per_class if opened.plan.has_mask else 1  # without masks, more than the gallery's are of no use
    show = Showcase(opened, open_teacher(pipeline.precompute.teacher)[0], networks, per_class)
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
    if len(pipeline.seeds) > 1 and (out / STATUS).exists():
        print(f"\n{publish(out)}")
    print(f"\nreport: {(out / 'report.html').resolve()}")
    return out / "report.html"


def main() -> None:
    run(parse(PipelineConfig, "jobs.pipeline"))


if __name__ == "__main__":
    run_job(main)
