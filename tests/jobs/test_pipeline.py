"""The main job at toy size, as a real program."""

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from igkd.base.errors import UserError
from igkd.config.pipeline import PipelineConfig
from igkd.config.presets import make_pipeline
from igkd.networks import checkpoint
from igkd.networks.network import parameter_count
from igkd.store import verify
from jobs.pipeline import check_ahead, run
from tests.helpers.pictures import pictures


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline") / "out"


def arguments(out: Path) -> list[str]:
    toy = ["--images", "shapes:train=120,test=30", "--teacher-epochs", "1", "--limit", "60", "--steps", "4", "--epochs", "2"]
    toy += ["--arms", "student", "kd+ig", "--seeds", "0"]
    return ["--preset", "demo", "--out", str(out), *toy]


def test_pipeline_makes_everything_and_reports_it(run_job: Callable[..., subprocess.CompletedProcess[str]], finished: Path) -> None:
    done = run_job("pipeline", *arguments(finished))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.strip().splitlines()
    assert lines[-1] == f"report: {finished / 'report.html'}"
    assert verify(str(finished / "store")) == []
    rows = json.loads((finished / "results.json").read_text())
    assert [row["name"] for row in rows] == ["teacher", "student", "kd+ig"]
    for row, directory in zip(rows, ["teacher", *(f"students/{arm}-seed0" for arm in ("student", "kd+ig"))], strict=True):
        assert parameter_count(checkpoint.load(finished / directory)) == row["parameters"]
    page = (finished / "report.html").read_text()
    assert not re.search(r'(src|href)="?(https?:)?//', page)
    for text in ("kd+ig", "--preset demo", "circle", "uniform map", "multiply-adds"):
        assert text in re.sub(r"</?span>", "", page)
    for row in rows:
        assert f"{100 * row['test']['accuracy']:.1f}" in page


def test_the_same_command_again_computes_nothing(run_job: Callable[..., subprocess.CompletedProcess[str]], finished: Path) -> None:
    drawn = ("report.html", "results.json", "rows.jsonl", "status.json")  # anew from what is there
    files = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name not in drawn}
    done = run_job("pipeline", *arguments(finished))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "already finished" in done.stdout and "2 of 2 runs finished;" in done.stdout
    assert files == {p: p.stat().st_mtime_ns for p in files}


def test_command_line_changes_the_preset_and_nothing_else() -> None:
    pipeline = make_pipeline(
        PipelineConfig(preset="cifar10", out="o", arms=("kd", "at"), seeds=(0, 1), student="mobilenet:cut=7", teacher="t")
    )
    assert pipeline.teacher is None
    assert pipeline.precompute.teacher == "t" and pipeline.precompute.student == "mobilenet:cut=7" and pipeline.precompute.steps == 50
    assert [(one.arm, one.seed, one.student, one.epochs) for one in pipeline.students] == [
        (arm, seed, "mobilenet:cut=7", 100) for seed in (0, 1) for arm in ("kd", "at")
    ]  # fmt: skip
    with pytest.raises(UserError, match="at least one"):
        make_pipeline(PipelineConfig(preset="demo", out="o", arms=()))


def test_a_class_map_is_for_a_given_teacher() -> None:
    given = make_pipeline(PipelineConfig(preset="demo", out="o", teacher="t", class_map="map.json"))
    assert given.precompute.class_map == "map.json"
    with pytest.raises(UserError, match="--teacher"):
        PipelineConfig(preset="demo", out="o", class_map="map.json")


def test_evidence_has_arms_controls_and_recipes_with_the_same_seeds() -> None:
    for preset, strong in (("evidence", "strong"), ("evidence-night", "strong-night")):
        runs = make_pipeline(PipelineConfig(preset=preset, out="o", images="shapes", teacher="t")).students  # type: ignore[arg-type]
        assert len(runs) == len({one.out for one in runs}) == 30
        assert (
            {one.seed for one in runs} == {0, 1, 2}
            and {one.teacher for one in runs} == {"t"}
            and {one.test_images for one in runs} == {"shapes"}
        )
        assert {one.label for one in runs if one.recipe == strong} >= {
            f"kd+ig{content}, {strong}" for content in ("", ", other", ", black", ", noise", ", brightness")
        }
        assert {one.which_logits == "live" for one in runs if one.recipe == strong and "kd" in one.arm} == {strong == "strong"} and not any(
            one.which_logits == "live" for one in runs if one.recipe == "paper"
        )
        assert all(not any(c in one.out for c in " ,") for one in runs)


def test_a_recipe_replaces_the_presets() -> None:
    runs = make_pipeline(PipelineConfig(preset="cifar10", out="o", recipe="strong", arms=("kd",))).students
    assert [(one.recipe, one.arm, one.optimizer, one.teacher) for one in runs] == [("strong", "kd", "sgd", "o/teacher")]


def test_test_pictures_are_looked_at_before_the_teacher_is_trained(tmp_path: Path) -> None:
    pictures(tmp_path, "train", 40)
    images = pictures(tmp_path, "test", 10)
    path = next((tmp_path / "test").rglob("004.png"))
    path.write_bytes(path.read_bytes()[:200])
    out = tmp_path / "out"
    with pytest.raises(UserError, match="004.png.*--bad-images skip"):
        run(PipelineConfig(preset="demo", images=images, out=str(out)))
    assert not out.exists()
    check_ahead(make_pipeline(PipelineConfig(preset="demo", images=images, out=str(out), bad_images="skip")))


def test_students_are_tried_before_the_teacher_is_trained(tmp_path: Path) -> None:
    """At the size of the pictures, and at that of epochs of low resolution."""
    for name, words in (("airbench:8,8,8,8,8", "cannot take pictures of 32x32 pixels"), ("airbench:0", "names no network")):
        with pytest.raises(UserError, match=words):
            check_ahead(make_pipeline(PipelineConfig(preset="demo", out=str(tmp_path / "p"), student=name)))
    small = {"images": "shapes:train=60,test=20", "image_size": 17, "student": "airbench:8,8,8,8"}
    pipeline = make_pipeline(PipelineConfig(preset="demo", out=str(tmp_path / "p"), **small))
    check_ahead(pipeline)
    lower = [dataclasses.replace(one, low_resolution_epochs=1) for one in pipeline.students]
    with pytest.raises(UserError, match="cannot take pictures scaled to 13x13 pixels .*leave out --low-resolution-epochs"):
        check_ahead(dataclasses.replace(pipeline, students=lower))


def test_views_that_are_too_many_are_refused_before_the_teacher_is_trained(tmp_path: Path) -> None:
    large = {"images": "shapes:train=60,test=20", "image_size": 80, "student": "lean:2:8x1"}
    with pytest.raises(UserError, match=r"--views all is for images of at most 64 pixels .* it would take 0.2 MB and 9,720 forward passes"):
        check_ahead(make_pipeline(PipelineConfig(preset="evidence-cpu", out=str(tmp_path / "p"), **large)))


@pytest.mark.parametrize(
    ("changes", "recipe", "message"),
    [
        ({"steps": 0}, {}, "--steps and --limit must be at least 1"),
        ({"limit": -5}, {}, "--steps and --limit must be at least 1"),
        ({"limit": 1}, {}, "0 validation rows of 1"),
        ({}, {"alpha": 9.0}, "alpha, overlay and blend must be between 0 and 1"),
        ({}, {"explanation": "gradcam"}, "holds no Grad-CAM"),
        ({"preset": "cifar10"}, {"logits": "views"}, "has no logits of crops"),
        ({}, {"crop": "resized", "logits": "views"}, "has the logits of padded crops"),
        ({"workers": 9}, {"batch_size": 8}, "batches of 8 are too small for 9 workers"),
        ({}, {"made": {"store_fingerprint": "another"}, "alpha": 0.5}, "was found with another store than this pipeline makes"),
        ({"arms": ("kd+at",)}, {"taps": ["stages.9", "features.9"]}, "stages.9"),
        ({"arms": ("map",)}, {"content": "black"}, "a black map points nowhere"),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_what_no_student_could_learn_from_is_refused_before_the_teacher_is_trained(
    changes: dict[str, Any], recipe: dict[str, Any], message: str, given: bool, teacher: str, tmp_path: Path
) -> None:
    usual: dict[str, Any] = {"preset": "demo", "images": "shapes:train=120,test=20", "arms": ("kd+ig",), "student": "lean:2:8x1,16x1"}
    if recipe:
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({"batch_size": 8} | recipe))
        usual["recipe"] = str(path)
    if given:
        usual["teacher"] = teacher
    with pytest.raises(UserError, match=message):
        check_ahead(make_pipeline(PipelineConfig(out=str(tmp_path / "p"), **usual | changes)))
    assert not (tmp_path / "p").exists()
    check_ahead(make_pipeline(PipelineConfig(out=str(tmp_path / "p"), **{k: v for k, v in usual.items() if k != "recipe"})))


def test_what_the_pipeline_does_with_pictures_all_of_its_jobs_do() -> None:
    pipeline = make_pipeline(PipelineConfig(preset="demo", out="o", images="folder:x", image_size=48, bad_images="skip"))
    assert pipeline.teacher is not None
    for one in (pipeline.teacher, pipeline.precompute):
        assert (one.images, one.image_size, one.bad_images) == ("folder:x", 48, "skip")
    assert {(one.test_images, one.bad_images) for one in pipeline.students} == {("folder:x", "skip")}
