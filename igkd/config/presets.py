"""Presets of jobs.pipeline: functions that give the configurations of its jobs, which the command line then changes."""

import re
from dataclasses import replace
from typing import Any, TypeVar

from igkd.base.choices import Arm, Content, parts_of
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import Optimisation, low_resolution_of
from igkd.config.pipeline import Pipeline, PipelineConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.config.recipes import STRONG, distill_config, recipe_values
from igkd.config.teacher import TeacherConfig

S = TypeVar("S")
RESIDUAL = "lean:1:24x2,48x2,96x2"
"""A residual student of 392,674 parameters, fewer than the cut one's 543,498."""
PAPER_ARMS: tuple[Arm, ...] = ("student", "kd", "kd+ig")
CONTROLS: tuple[Content, ...] = ("other", "black", "noise", "brightness")


DEMO = {"epochs": 32, "batch_size": 32, "learning_rate": 0.05, "averaging": 0.99, "logits": "views"}
"""What a run of some hundred steps needs other than the recipe `strong`."""


def demo(out: str) -> Pipeline:
    """Everything once on built-in pictures, with networks that learn them in a minute: a teacher of 2,700 images, and students a quarter
    of its size that see 540, so that there is something that they can learn from it."""
    images = "shapes:train=3000,test=1000"
    student = DistillConfig(
        store=f"{out}/store", test_images=images, out=f"{out}/students", student="lean:2:16x1,32x1,64x1", **STRONG | DEMO
    )
    return Pipeline(
        teacher=TeacherConfig(
            images=images, out=f"{out}/teacher", epochs=20, learning_rate=0.05, batch_size=32, network="lean:2:32x1,64x1,128x1"
        ),
        precompute=PrecomputeConfig(
            images=images, teacher=f"{out}/teacher", store=f"{out}/store", student=student.student, limit=600, rows_per_file=50, views="16"
        ),
        students=tuple(replace(student, arm=arm) for arm in PAPER_ARMS),
        seeds=(0, 1, 2),
        images_per_class=2,
    )


def cifar10(out: str) -> Pipeline:
    """The paper's protocol on all of CIFAR-10."""
    student = DistillConfig(store=f"{out}/store", test_images="cifar10", out=f"{out}/students")
    return Pipeline(
        teacher=TeacherConfig(images="cifar10", out=f"{out}/teacher"),
        precompute=PrecomputeConfig(images="cifar10", teacher=f"{out}/teacher", store=f"{out}/store"),
        students=tuple(replace(student, arm=arm) for arm in PAPER_ARMS),
        images_per_class=10,
    )


def evidence(out: str) -> Pipeline:
    """Whether the overlay helps: arms and controls by the strong recipe, the ends by the paper's, with 3 seeds each."""
    return replace(cifar10(out), students=judged_students(out, "strong", maps=200), seeds=(0, 1, 2))


def evidence_night(out: str) -> Pipeline:
    """Like `evidence`, for an evening on two cores: 2,700 training images, 8 epochs."""
    whole = cifar10(out)
    students = judged_students(out, "strong-night", maps=20, epochs=8)
    return replace(whole, precompute=replace(whole.precompute, limit=3000), students=students, seeds=(0, 1, 2))


def evidence_cpu(out: str) -> Pipeline:
    """All of CIFAR-10, as long as processors without a GPU can take: the paper's teacher, its logits of all crops, and two students, the
    paper's and a smaller and faster residual one. Each is trained alone, by kd, by kd+ig, and by kd+ig with other images' maps."""
    places = {"store": f"{out}/store", "test_images": "cifar10", "out": f"{out}/students", "teacher": f"{out}/teacher"}
    arms: tuple[tuple[Arm, Content], ...] = (("student", "own"), ("kd", "own"), ("kd+ig", "own"), ("kd+ig", "other"))
    whole = cifar10(out)
    assert whole.teacher is not None
    teacher = replace(whole.teacher, epochs=40, averaging=0.998, low_resolution_epochs=16, keep_epochs=(10, 20, 30))
    return replace(
        whole,
        teacher=teacher,
        precompute=replace(whole.precompute, views="all"),
        students=tuple(
            distill_config("strong-cpu", **places, arm=arm, content=content, student=student, maps=200)
            for student in ("mobilenet:cut=5", RESIDUAL)
            for arm, content in arms
        ),
        seeds=(0, 1, 2),
    )


def judged_students(out: str, recipe: str, maps: int, **settings: Any) -> tuple[DistillConfig, ...]:
    """Arms and controls by a recipe, and the ends of them by the paper's."""
    places = {"store": f"{out}/store", "test_images": "cifar10", "out": f"{out}/students", "teacher": f"{out}/teacher"}

    def student(recipe: str, arm: Arm, **more: Any) -> DistillConfig:
        return distill_config(recipe, **places, arm=arm, maps=maps, **settings, **more)

    arms: tuple[Arm, ...] = ("student", "kd", "ig", "kd+ig")
    return (
        *(student(recipe, arm) for arm in arms),
        *(student(recipe, "kd+ig", content=content) for content in CONTROLS),
        student("paper", "student"),
        student("paper", "kd+ig"),
    )


PRESETS = {"demo": demo, "cifar10": cifar10, "evidence": evidence, "evidence-cpu": evidence_cpu, "evidence-night": evidence_night}


def make_pipeline(config: PipelineConfig) -> Pipeline:
    """The preset with what the command line changes; one student configuration for each run."""
    if config.arms == () or config.seeds == ():
        raise UserError("--arms and --seeds must name at least one each")
    preset = PRESETS[config.preset](config.out)
    students = preset.students
    if config.recipe is not None:
        students = tuple(by_recipe(config.recipe, one) for one in students if one.recipe == students[0].recipe)
    if config.arms is not None:
        # The features of feat come from a live teacher, who then gives the logits as well.
        live = replace(students[0], logits="auto")
        students = tuple(replace(live if "feat" in parts_of(arm) else students[0], arm=arm) for arm in config.arms)
    students = tuple(
        changed(
            one, test_images=config.images, teacher=one.teacher or f"{config.out}/teacher" if config.teacher is None else config.teacher,
            student=config.student, epochs=config.epochs, workers=config.workers, bad_images=config.bad_images,
        )
        for one in students
    )  # fmt: skip
    students = tuple(dict.fromkeys(students))  # a recipe, or --student, may have made equal what the preset has apart
    several = len({one.student for one in students}) > 1
    seeds = dict.fromkeys(preset.seeds if config.seeds is None else config.seeds)
    assert preset.teacher is not None
    pictures = {"images": config.images, "image_size": config.image_size, "bad_images": config.bad_images}
    teacher = changed(preset.teacher, **pictures, epochs=config.teacher_epochs, workers=config.workers)
    return Pipeline(
        teacher=teacher if config.teacher is None else None,
        precompute=changed(
            preset.precompute,
            **pictures,
            teacher=config.teacher,
            class_map=config.class_map,
            limit=config.limit,
            steps=config.steps,
            student=config.student,
        ),
        students=tuple(
            replace(one, seed=seed, out=f"{one.out}/{directory(one, several)}-seed{seed}") for seed in seeds for one in students
        ),  # after a night that was too short, each has had its turn
        seeds=tuple(seeds),
        images_per_class=preset.images_per_class,
    )


def by_recipe(recipe: str, student: DistillConfig) -> DistillConfig:
    """A preset's run by another recipe, which decides every setting, also those that it leaves at their defaults. Places, arm, seed and
    control stay the preset's, and so does the network unless the recipe names one."""
    kept = ["store", "out", "test_images", "teacher", "arm", "seed", "maps"]
    if student.content != "own":
        kept.append("content")
    if "student" not in recipe_values(recipe):
        kept.append("student")
    return distill_config(recipe, **{name: getattr(student, name) for name in kept})


def changed(part: S, **values: object) -> S:
    """A configuration in which the values that are not None are changed; with other epochs, the share of low resolution stays."""
    given = {k: v for k, v in values.items() if v is not None}
    if isinstance(part, Optimisation) and isinstance(epochs := given.get("epochs"), int):
        given["low_resolution_epochs"] = low_resolution_of(epochs, part.low_resolution_epochs, part.epochs)
        if isinstance(part, TeacherConfig):
            given["keep_epochs"] = tuple(epoch for epoch in part.keep_epochs if epoch <= epochs)
    return replace(part, **given)  # type: ignore[type-var]


def directory(student: DistillConfig, several: bool) -> str:
    """A run's label as a file name; with the network, if there are several networks."""
    return re.sub(r"[^A-Za-z0-9+.]+", "-", f"{student.label} {student.student}" if several else student.label)
