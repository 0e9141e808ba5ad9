"""A student's task, built from its store and settings; each worker builds the same."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from igkd.base.errors import UserError
from igkd.base.storage import absolute
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import FewCrops, Objective
from igkd.config.recipes import MADE, made_for
from igkd.images.samples import Samples
from igkd.images.source import without_pictures
from igkd.networks.initial import Initial, initial, normalised
from igkd.networks.network import Classifier, NetworkSpec, build, channels_at
from igkd.networks.open import DEFAULT, open_teacher
from igkd.networks.renumbered import class_numbers, restricted
from igkd.store import Plan, Store
from igkd.store.views import few_of
from igkd.training.batches import plan_line
from igkd.training.identity import ingest_of
from igkd.training.student_checks import attention_tap, check_counts, check_fits, check_network, student_spec
from igkd.training.student_rows import look_through, mixed_up, some_of
from igkd.training.task import Moments, Task, every

IMPORTED = "take a checkpoint of `igkd import --class-map FILE`"


def check_student(config: DistillConfig, store: Store) -> None:
    """`check_counts` of a store that is there; reads no pictures."""
    validation = store.column("validation")
    check_counts(config, len(validation), int(validation.sum()))


def distill_task(config: DistillConfig, teacher: Classifier | None = None, rows: tuple[Samples, NDArray[np.bool_]] | None = None) -> Task:
    """The task of training a student: its network, and the rows of its store.

    Args:
        rows: the result of `Store.samples`, if it is in memory already.

    Raises:
        UserError: the store is missing, unfinished or damaged, or lacks what the arm needs.
    """
    store = _fitting_store(config)
    plan = store.plan
    held_out = store.column("validation")
    check_counts(config, len(held_out), int(held_out.sum()))
    views = config.which_logits == "views"
    if ingest_of(config, store) == "stream":
        train = None
        validation, moments = look_through(store, every(int((~held_out).sum())))
    else:
        samples, held_out = rows or store.samples(views=views)
        train, validation = samples.select(~held_out), samples.select(held_out)
        train, moments = train.select(some_of(train, config)), Moments()
        moments.add(train.pixels[:: every(len(train))])

    spec, start = student_spec(config, plan), start_of(config, plan)
    if start is not None:
        mean, std = normalised(spec, start)
        spec = replace(spec, mean=mean, std=std)
    elif config.normalise:
        mean, std = moments.normalisation()
        spec = replace(spec, mean=mean, std=std)
    return Task(
        spec=spec,
        initial=None if start is None else start.state,
        train=None if train is None else mixed_up(train, config),
        count=int((~held_out).sum()) if train is None else len(train),
        validation=validation,
        optimisation=config.optimisation,
        objective=compared_layers(replace(config.objective, crops=crops_of(store) if views else None), config, plan, spec, teacher),
        seed=config.seed,
        teacher=teacher,
        maps=config.maps,
    )


def compared_layers(objective: Objective, config: DistillConfig, plan: Plan, spec: NetworkSpec, teacher: Classifier | None) -> Objective:
    """The objective with the layers of student and teacher that it compares, if it compares any."""
    tap, layer = attention_tap(config, plan), plan.attention_layer
    if tap is None:
        return objective
    channels = None
    if objective.feature_weight > 0 and teacher is not None and layer is not None:
        channels = channels_at(build(spec, 0), tap), channels_at(teacher, layer)
    return replace(objective, tap=tap, teacher_tap=layer, tap_channels=channels)


def student_line(config: DistillConfig, store: Store) -> str:
    """What the store has and what a run from it comes to, as a line."""
    held_out = store.column("validation")
    count, classes = len(held_out), len(store.plan.classes)
    missing = without_pictures(store.column("label"), store.plan.classes)
    train = round(config.share * int((~held_out).sum()))
    share = "" if config.share == 1 else f" on {train:,} of the others"
    line = plan_line(f"{count:,} pictures of {classes:,} classes in the store{missing}", int(held_out.sum()), train, config.optimisation)
    return f"{line}{share}, for {student_spec(config, store.plan).name}"


def start_of(config: DistillConfig, plan: Plan) -> Initial | None:
    """The weights that a student starts from; None for random ones.

    Raises:
        UserError: they cannot be had, or do not fit.
    """
    return None if config.init is None else initial(student_spec(config, plan).name, len(plan.classes), config.init)


def crops_of(store: Store) -> FewCrops | None:
    """The crops that students are restricted to, if the store has logits of only some; else None."""
    return None if store.views is None else few_of(store.views)


def for_workers(config: DistillConfig) -> DistillConfig:
    """The settings for processes with another working directory: paths absolute, no test images, which are sent decoded."""
    init = config.init if config.init in (None, DEFAULT) else absolute(config.init)
    return replace(config, store=absolute(config.store), test_images=None, init=init)


def open_store(config: DistillConfig) -> Store:
    """Open the store that a student learns from, at the start of a run; reads no rows.

    Raises:
        UserError: the store is missing, unfinished, lacks what the arm needs, or is not the one that the recipe was found with; or the
            batches are too small for the student.
    """
    if config.maps > 0 and config.test_images is None:
        raise UserError(f"--maps {config.maps} evaluates maps of test images: name those by --test-images, or leave --maps out")
    store = _fitting_store(config)
    check_network(config, store.plan)
    wanted = made_for(config.recipe)
    if wanted is not None and wanted != store.fingerprint():
        raise UserError(
            f"the recipe {config.recipe} was found with another store than {config.store}; "
            f'tune on this one, or delete "{MADE}" from the file to use it all the same'
        )
    return store


def _fitting_store(config: DistillConfig) -> Store:
    """Like open_store, but skips the checks of network and recipe: workers may not have the recipe's file."""
    store = Store.open(config.store)
    check_fits(config, store.plan, store.views)
    return store


def open_teacher_of(config: DistillConfig) -> Classifier | None:
    """The teacher that a student's settings name; None if they name none.

    Raises:
        UserError: a teacher is needed and not named, cannot be opened, or is not the one that the store was made with.
    """
    if config.maps == 1 or config.maps < 0:
        raise UserError(f"--maps {config.maps} is too few: a map is compared with its own image's and with another's; use 0, or at least 2")
    if config.teacher is None:
        if config.which_logits == "live":
            raise UserError(
                "to distil from the teacher itself, say where it is with --teacher DIR; or add views to the store "
                "(jobs.precompute --views all); or choose --logits image and --no-live"
            )
        return None
    (teacher, card), store = open_teacher(config.teacher), Store.open(config.store)
    if card["sha256"] != store.plan.teacher:
        raise UserError(f"{config.teacher} is not the teacher that {config.store} was made with: its weights differ")
    remedy = "make a store with this teacher"
    teacher, _ = restricted(teacher, f"the teacher {config.teacher}", config.store, store.plan.classes, f"{IMPORTED}, or {remedy}")
    numbers = class_numbers(teacher, f"the teacher {config.teacher}", config.store, store.plan.classes, remedy)
    if not np.array_equal(numbers, np.arange(len(numbers))):
        raise UserError(f"{config.teacher} is not the teacher that {config.store} was made with: its classes are in another order")
    return teacher
