"""Values that no job can work with are refused when a command starts; and what a change of one setting does to others."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from igkd.base.errors import UserError
from igkd.config.command_line import parse
from igkd.config.distill import DistillConfig
from igkd.config.evaluate import EvaluateConfig
from igkd.config.explain import ExplainConfig
from igkd.config.export import ExportConfig
from igkd.config.import_network import ImportConfig
from igkd.config.latency import LatencyConfig
from igkd.config.pipeline import PipelineConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.config.presets import make_pipeline
from igkd.config.recipes import distill_config
from igkd.config.sweeps import AblateConfig, SearchConfig, TuneConfig
from igkd.config.teacher import TeacherConfig
from igkd.deployment import latency
from igkd.evaluation import evaluate
from igkd.training.student_data import open_store
from tests.helpers.stores import tiny_plan, write_all

Make = Callable[..., Any]


def teacher(**given: Any) -> TeacherConfig:
    return TeacherConfig(images="shapes", out="o", **given)


def distill(**given: Any) -> DistillConfig:
    return DistillConfig(store="s", out="o", **given)


def sweep(kind: type, **given: Any) -> Any:
    return kind(store="s", out="o", **({"teacher": "t"} if kind is SearchConfig else {}), **given)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, -(2**63) - 1, 99999999999999999999])
def test_a_seed_is_one_that_all_generators_take(seed: int) -> None:
    jobs: list[Make] = [
        lambda: teacher(seed=seed),
        lambda: distill(seed=seed),
        lambda: sweep(AblateConfig, seeds=(0, seed)),
        lambda: sweep(TuneConfig, seed=seed),
        lambda: sweep(SearchConfig, seed=seed),
        lambda: PipelineConfig(preset="demo", out="o", seeds=(seed,)),
    ]
    for make in jobs:
        with pytest.raises(UserError, match="a seed must be between 0 and 4,294,967,295, not"):
            make()
    assert teacher(seed=2**32 - 1).seed == 2**32 - 1


@pytest.mark.parametrize("side", [0, -3])
def test_a_picture_has_a_side(side: int) -> None:
    jobs: list[Make] = [
        lambda: teacher(image_size=side),
        lambda: PrecomputeConfig(images="shapes", teacher="t", store="s", image_size=side),
        lambda: PipelineConfig(preset="demo", out="o", image_size=side),
    ]
    for make in jobs:
        with pytest.raises(UserError, match="--image-size must be at least 1 pixel"):
            make()


@pytest.mark.parametrize("make", [teacher, distill])
@pytest.mark.parametrize(
    "changes",
    [
        {"padding": -1},
        {"learning_rate": 1e38},
        {"learning_rate": float("nan")},
        {"head_learning_rate": float("inf")},
        {"weight_decay": 1e38},
    ],
)
def test_what_no_training_survives_is_refused(make: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        make(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": float("inf")},
        {"temperature": 1e4},
        {"temperature": 1e-4},
        {"temperature": float("nan")},
        {"gamma": float("inf")},
    ],
)
def test_a_loss_that_would_be_rounding_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be between"):
        _ = distill(**changes, arm="kd+at").objective


@pytest.mark.parametrize("out", ["", " ", "s3://bucket/run", "gs://bucket/run"])
def test_a_run_is_written_to_a_directory(out: str) -> None:
    jobs: list[Make] = [
        lambda: TeacherConfig(images="shapes", out=out),
        lambda: DistillConfig(store="s", out=out),
        lambda: PipelineConfig(preset="demo", out=out),
        lambda: AblateConfig(store="s", out=out),
        lambda: ImportConfig(network="mobilenet", images="shapes", out=out),
    ]
    files: list[Make] = [
        lambda: EvaluateConfig(checkpoint="c", images="shapes", out=out),
        lambda: LatencyConfig(models=("m",), out=out),
        lambda: ExplainConfig(checkpoint="c", images="shapes", out=out),
        lambda: ExportConfig(checkpoint="c", format="onnx", out=out),
    ]
    for make, what in [*((one, "directory") for one in jobs), *((one, "file") for one in files)]:
        with pytest.raises(UserError, match=f"--out .*{what}"):
            make()


@pytest.mark.parametrize(
    ("config", "line", "name"),
    [
        (PipelineConfig, ["--preset", "demo", "--out", "o", "--teacher", ""], "teacher"),
        (PrecomputeConfig, ["--images", "shapes", "--teacher", " ", "--store", "s"], "teacher"),
        (PrecomputeConfig, ["--images=", "--teacher", "t", "--store", "s"], "images"),
        (AblateConfig, ["--store", "s", "--out", "o", "--students", "lean:2:8x1", ""], "students"),
        (TeacherConfig, ["--images", "shapes", "--out", "o", "--init", ""], "init"),
        (ImportConfig, ["", "--images", "shapes", "--out", "o"], "network"),
        (LatencyConfig, ["a", ""], "models"),
        (ExplainConfig, ["--checkpoint", "c", "--images", "shapes", "--out", ""], "out"),
    ],
)
def test_an_empty_value_is_refused_and_not_taken_for_none(
    config: type, line: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["igkd", *line])
    with pytest.raises(UserError, match=f"^{name} is empty"):
        parse(config, "igkd test")


def test_maps_are_of_test_images() -> None:
    with pytest.raises(UserError, match="--maps 5 evaluates maps of test images: name those by --test-images"):
        open_store(distill(maps=5))


@pytest.mark.parametrize("arm", ["dkd", "kd+lskd"])
def test_logits_of_one_class_cannot_be_compared_with_each_other(arm: str, tmp_path: Path) -> None:
    write_all(str(tmp_path / "s"), tiny_plan(classes=("a",), shape=(16, 16)))
    with pytest.raises(UserError, match="compares a teacher's logits with each other, and .* has one class"):
        open_store(DistillConfig(store=str(tmp_path / "s"), out="o", arm=arm, student="lean:2:8x1"))


@pytest.mark.parametrize("main", [latency.main, evaluate.main])
def test_a_result_that_cannot_be_written_is_refused_before_anything_is_measured(
    main: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["nowhere"] if main is latency.main else ["--checkpoint", "nowhere", "--images", "shapes"]
    monkeypatch.setattr(sys, "argv", ["igkd", *given, "--out", str(tmp_path)])
    with pytest.raises(UserError, match="it is a directory; name a file in it"):
        main()


def test_other_epochs_leave_the_share_of_low_resolution() -> None:
    whole = distill_config("strong-cpu", store="s", out="o")
    half = distill_config("strong-cpu", store="s", out="o", epochs=whole.epochs // 2)
    assert whole.low_resolution_epochs > 0 and half.low_resolution_epochs == whole.low_resolution_epochs / 2
    assert distill_config("strong-cpu", store="s", out="o", epochs=1).low_resolution_epochs == 0
    assert distill_config("strong-cpu", store="s", out="o", epochs=4, low_resolution_epochs=4).low_resolution_epochs == 4
    made = make_pipeline(PipelineConfig(preset="evidence-cpu", out="o", images="shapes", epochs=5, teacher_epochs=20))
    assert made.teacher is not None and (made.teacher.low_resolution_epochs, made.teacher.keep_epochs) == (8, (10, 20))
    assert {(one.epochs, one.low_resolution_epochs) for one in made.students} == {(5, 2)}


def test_a_presets_stored_views_give_way_to_the_live_teacher_of_feat() -> None:
    made = make_pipeline(PipelineConfig(preset="demo", out="o", arms=("kd", "feat")))
    assert {one.arm: (one.live, one.logits) for one in made.students} == {"kd": (False, "views"), "feat": (True, "auto")}


@pytest.mark.parametrize(("text", "expected"), [("0.25", 0.25), ("null", None)])
def test_a_recipe_may_set_what_is_none_by_default(text: str, expected: float | None, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(f'{{"head_learning_rate": {text}, "taps": ["layer3", "features.13"]}}')
    found = distill_config(str(tmp_path / "r.json"), store="s", out="o")
    assert found.head_learning_rate == expected and found.taps == ("layer3", "features.13")
    for wrong in ('"fast"', "true", "[1]", "NaN"):
        (tmp_path / "r.json").write_text(f'{{"head_learning_rate": {wrong}}}')
        with pytest.raises(UserError, match="head_learning_rate cannot be|is no recipe|not JSON|damaged"):
            distill_config(str(tmp_path / "r.json"), store="s", out="o")


def test_a_home_directory_after_an_equals_sign_is_the_shells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(sys, "argv", ["igkd", "--images=folder:x~y", "--out=~/d", "--init", "~/w"])
    found = parse(TeacherConfig, "igkd teacher")
    assert (found.images, found.out, found.init) == ("folder:x~y", "/home/ada/d", "~/w")
