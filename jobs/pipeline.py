"""Teacher, store, students and report in one command: python -m jobs.pipeline --preset demo --out DIR"""

import functools
from pathlib import Path
from typing import Any

from igkd import store
from igkd.base import provenance
from igkd.base.errors import TIME_IS_UP, UserError
from igkd.base.storage import absolute, write_bytes, write_json
from igkd.base.time_limit import deadline, seconds_left
from igkd.config.command_line import parse
from igkd.config.pipeline import Pipeline, PipelineConfig
from igkd.config.presets import make_pipeline
from igkd.images.open import open_images
from igkd.networks.network import Classifier, build
from igkd.networks.open import open_teacher
from igkd.networks.renumbered import for_pictures
from igkd.report import pipeline_page
from igkd.report.gallery import Showcase, load_students
from igkd.report.html import source_name
from igkd.sweeps import forecast
from igkd.sweeps.grid import Cell
from igkd.sweeps.ledger import STATUS, read_rows, read_status
from igkd.sweeps.publish import publish
from igkd.training.ahead import check_students
from igkd.training.held_out import read_unseen, unseen_by_teacher
from igkd.training.identity import decided
from igkd.training.student_data import open_store
from igkd.training.teacher_data import check_teacher, untrained_spec
from jobs.backend.cells import claim, train_cells
from jobs.backend.runtime import TIME_WAS_UP, begin_ray, in_thread, run_job, start_ray, stopping_after
from jobs.distill import distill
from jobs.precompute import precompute_store
from jobs.teacher import train_teacher

COMPARISONS = "comparisons.html"
"""File name of the page with the statistics of arms that have several seeds."""
RUNS_PER_GPU = 3
"""Students that train on one GPU at a time; one alone leaves most of it idle."""


def run(config: PipelineConfig) -> Path | None:
    """Run what is not done yet; gives the path of the report, or None if the time was up before.

    Raises:
        UserError: a job cannot be run, or another pipeline is running in this directory.
    """
    ends, pipeline = deadline(config.hours, config.until, provenance.now()), make_pipeline(config)
    if config.dry_run:
        forecast_hours(pipeline)
        return None
    begin_ray()
    check_ahead(pipeline)
    with store.hold(config.out):
        start_ray()
        try:
            with stopping_after(seconds_left(ends)):
                if pipeline.teacher is None:
                    teacher = given_teacher(pipeline.precompute.teacher)
                else:
                    teacher = in_thread(functools.partial(train_teacher, pipeline.teacher))
                precompute_store(pipeline.precompute)
        except KeyboardInterrupt:
            if TIME_WAS_UP.is_set():
                return None
            raise
        rows = run_students(config.out, pipeline, ends)
        return None if rows is None else write_report(config, pipeline, teacher, rows)


def forecast_hours(pipeline: Pipeline) -> None:
    """Print how long each stage takes on this machine, and all of them together."""
    print(f"measuring on {provenance.machine()}", flush=True)
    total = 0.0
    for stage in forecast.stages(pipeline):
        total += stage.seconds
        print(forecast.line(stage), flush=True)
    print(f"{total / 3600:.1f} hours in all, if nothing else computes; what is done already is not looked at", flush=True)


def check_ahead(pipeline: Pipeline) -> None:
    """Check what is used only hours later, before the teacher is trained: the store's settings, the students', and the test images.

    Raises:
        UserError: the store cannot be made so, a student cannot learn from it; there are no test images, or one cannot be used.
    """
    places = [one.out for one in pipeline.students] + ([] if pipeline.teacher is None else [pipeline.teacher.out])
    if all((Path(out) / "result.json").exists() for out in places):
        return
    if pipeline.teacher is not None:
        check_teacher(pipeline.teacher)
        untrained = build(untrained_spec(pipeline.teacher, open_images(pipeline.teacher.images)), 0)
        check_students(pipeline.precompute, untrained, pipeline.students)
        unseen_by_teacher(pipeline.teacher)
        return
    network = given_network(pipeline)
    check_students(pipeline.precompute, network, pipeline.students)
    given = network.spec
    student = pipeline.students[0]
    if student.test_images is not None:
        resize = pipeline.precompute.image_size is not None
        read_unseen(student.test_images, given.classes, given.image_shape, resize, student.bad_images, given.scaling)


def run_students(out: str, pipeline: Pipeline, ends: float | None = None) -> list[dict[str, Any]] | None:
    """Train all students, as many at a time as fit, each in one process; if one needs several workers, or streams its store, one after
    the other.

    Args:
        ends: Unix time at which to stop; None for no limit.

    Returns:
        their rows; None if the time was up before all had finished.

    Raises:
        UserError: some could not be trained.
    """
    opened = store.Store.open(pipeline.students[0].store)
    grid = [Cell(label=one.label, config=decided(one, opened)) for one in pipeline.students]
    for cell in grid:
        open_store(cell.config)
    claim(grid)  # of all students, so that what was decided now is kept when the command is repeated
    if any(cell.config.workers > 1 or cell.config.ingest == "stream" for cell in grid):
        with stopping_after(seconds_left(ends)):
            return [in_thread(functools.partial(distill, cell.config)) for cell in grid]
    if not train_cells(grid, out, RUNS_PER_GPU, ends, page=COMPARISONS):
        if (status := read_status(Path(out))).time_was_up and not status.failures:
            print(f"{publish(Path(out))}\n\n{TIME_IS_UP}", flush=True)
            return None
        raise UserError("not all students could be trained, see above; the same command tries those again that are missing")
    rows = {row["cell"]: row for row in read_rows(Path(out))}
    for row in (rows[cell.name] for cell in grid):
        if row["state"] == "diverged":
            raise UserError(f"student {row['cell']} has no network: {row['error']}; delete {out}/students/{row['cell']} to try it again")
    return [rows[cell.name] for cell in grid]


def given_network(pipeline: Pipeline) -> Classifier:
    """The teacher that the store was or will be made with, with the logits of the images' classes."""
    config = pipeline.precompute
    teacher, classes = open_teacher(config.teacher)[0], open_images(config.images).classes
    return for_pictures(
        teacher, f"the teacher {config.teacher}", config.images, classes, "train a teacher on these images", config.class_map
    )[0]


def given_teacher(directory: str) -> dict[str, Any]:
    """The result row of a teacher that was trained elsewhere, from its checkpoint's JSON."""
    network, card = open_teacher(directory)
    made = card["made"]
    unknown = {"accuracy": float("nan"), "correct": 0, "count": 0, "loss": float("nan")}
    return {
        "name": "teacher",
        "seed": None,
        "history": made.get("history", []),
        "test": made.get("test", unknown),
        "classes": len(network.spec.classes),
        "parameters": card["parameters"],
        "multiply_adds": card["multiply_adds"],
        "compression": 1.0,
        "provenance": made.get("provenance", {}),
    }


def write_report(config: PipelineConfig, pipeline: Pipeline, teacher: dict[str, Any], students: list[dict[str, Any]]) -> Path:
    """Draw OUT/report.html from the result rows, and write these as OUT/results.json."""
    print("pipeline: drawing the report", flush=True)
    opened = store.Store.open(absolute(pipeline.precompute.store))
    networks = load_students(students, [Path(one.out) for one in pipeline.students])
    per_class = pipeline.images_per_class if opened.plan.has_mask else 1  # without masks only the gallery needs maps
    show = Showcase(opened, given_network(pipeline), networks, per_class)
    validation = opened.column("validation")
    page = pipeline_page.Report(
        title=f"Distillation on {source_name(pipeline.precompute.images)}",
        summary_note=f"Students learn from {int((~validation).sum()):,} images whose maps, logits and attention the teacher gave once, "
        f"with {opened.plan.path} for each map; {int(validation.sum()):,} more are the validation split.",
        teacher=teacher,
        students=students,
        gallery=show.gallery(),
        focus=show.focus(),
        latency=show.latency(),
        store=store.describe(opened.uri),
        commands=[provenance.command()],
    )
    out = Path(config.out)
    write_json(out / "results.json", [teacher, *students])
    write_bytes(out / "report.html", pipeline_page.render(page).encode())
    print(pipeline_page.summary_table(page))
    if len(pipeline.seeds) > 1 and (out / STATUS).exists():
        publish(out)
        print(f"\ncomparisons: {(out / COMPARISONS).resolve()}", end="")
    print(f"\nreport: {(out / 'report.html').resolve()}")
    return out / "report.html"


def main() -> None:
    run(parse(PipelineConfig, "python -m jobs.pipeline"))


if __name__ == "__main__":
    run_job(main)
