"""A student's task, built from its store and settings; each worker builds the same."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from igkd.base.choices import LOGIT_PARTS, TAP_PARTS, parts_of
from igkd.base.errors import UserError
from igkd.base.storage import absolute
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import FewCrops, Objective
from igkd.config.recipes import MADE, made_for
from igkd.images.samples import Samples
from igkd.images.source import without_pictures
from igkd.networks.families import student_name, tap_of
from igkd.networks.initial import Initial, initial, normalised
from igkd.networks.network import Classifier, NetworkSpec, build, channels_at
from igkd.networks.open import DEFAULT, open_teacher
from igkd.networks.renumbered import class_numbers, restricted
from igkd.networks.taps import check_tap, layers_of, student_tap
from igkd.networks.trial import check_trainable, check_twice_differentiable
from igkd.store import Plan, Store
from igkd.store.views import few_of
from igkd.training.batches import check_sizes, check_validation, plan_line
from igkd.training.identity import ingest_of
from igkd.training.student_rows import look_through, mixed_up, some_of
from igkd.training.task import Moments, Task, check_batch_size, every

IMPORTED = "take a checkpoint of `igkd import --class-map FILE`"


def check_student(config: DistillConfig, store: Store) -> None:
    """Check, without reading pictures, that there are enough images, and batches are large enough, for a student's workers.

    Raises:
        UserError: they are not; the message says what is needed.
    """
    validation = store.column("validation")
    check_sizes(round(config.share * int((~validation).sum())), config.batch_size, config.workers)
    check_validation(int(validation.sum()), config.workers)


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
    if not held_out.any() or held_out.all():
        raise UserError(f"{config.store} has {held_out.sum()} validation rows of {len(held_out)}; make a larger one (--limit)")
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


def student_spec(config: DistillConfig, plan: Plan) -> NetworkSpec:
    """The spec of a student's network, without normalisation of pixels. It says how pictures are prepared, so that every command prepares
    them as the store did: one whose pictures had the right size and were not scaled has no `short_side`."""
    return NetworkSpec(
        name=student_name(config.student, plan.teacher_network, plan.image_shape), classes=plan.classes, image_shape=plan.image_shape,
        short_side=plan.short_side if plan.resize else 0, interpolation=plan.interpolation,
    )  # fmt: skip


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
    spec = student_spec(config, store.plan)
    check_trainable(spec, config.lowest_scale)
    if config.objective.map_weight > 0:
        check_twice_differentiable(spec)
    check_batch_size(spec, config.optimisation)
    wanted = made_for(config.recipe)
    if wanted is not None and wanted != store.fingerprint():
        raise UserError(
            f"the recipe {config.recipe} was found with another store than {config.store}; "
            f'tune on this one, or delete "{MADE}" from the file to use it all the same'
        )
    return store


def _fitting_store(config: DistillConfig) -> Store:
    """Like open_store, but skips the check of the recipe: workers may not have its file."""
    store = Store.open(config.store)
    if not TAP_PARTS.isdisjoint(parts_of(config.arm)):
        check_attention(config, store.plan)
    uses_maps = config.objective.overlay > 0 or config.objective.map_weight > 0
    if uses_maps and config.explanation == "gradcam" and store.plan.gradcam_layer is None:
        raise UserError(f"{config.store} holds no Grad-CAM, which --explanation gradcam needs; make a store with --gradcam")
    if uses_maps and config.content == "mask" and not store.plan.has_mask:
        raise UserError(f"{config.store} holds no ground-truth masks, which only shapes has; choose another --content")
    if len(store.plan.classes) < 2 and not {"dkd", "lskd"}.isdisjoint(parts_of(config.arm)):
        raise UserError(f"{config.arm} compares a teacher's logits with each other, and {config.store} has one class: choose another --arm")
    check_views(config, store)
    if store.plan.split != "train":
        raise UserError(f"{config.store} was made from the {store.plan.split} split; students learn from a store of the train split")
    return store


def attention_tap(config: DistillConfig, plan: Plan) -> str | None:
    """Path of the student's layer that attention transfer, or feature distillation, compares with the teacher's; None if its arm has
    neither, or it has no such layer.

    Raises:
        UserError: --taps names no layer of the student.
    """
    if TAP_PARTS.isdisjoint(parts_of(config.arm)):
        return None
    spec = student_spec(config, plan)
    if config.taps is not None:
        return check_tap(config.taps[0], layers_of(spec.name, len(plan.classes), plan.image_shape), spec.name)
    if plan.attention_layer is None:
        return tap_of(spec.name, plan.teacher_network)
    height, width = plan.attention_shape
    return student_tap(spec.name, plan.teacher_network, len(plan.classes), plan.image_shape, (height, width))


def check_attention(config: DistillConfig, plan: Plan) -> None:
    """Check that the store has the teacher's attention of the layer that the student needs.

    Raises:
        UserError: it has not; the message says what to do.
    """
    student, tap = student_spec(config, plan).name, attention_tap(config, plan)
    compared = " and ".join(part for part in parts_of(config.arm) if part in TAP_PARTS)
    if plan.attention_layer is None:
        raise UserError(
            f"{config.store} holds no attention, which {config.arm} needs; make a store with --student {config.student}, if that has "
            f"a layer with maps as large as those of one of {plan.teacher_network}, or choose an arm without {compared}"
        )
    if tap is None:
        raise UserError(
            f"{student} has no layer with feature maps to compare with {plan.attention_layer} of its teacher, {plan.teacher_network}, so "
            f"{config.arm} cannot transfer {'attention' if 'at' in compared else 'features'}: choose an arm without {compared}"
        )
    needed = config.taps[1] if config.taps is not None else tap_of(student, plan.teacher_network)
    if needed not in (None, plan.attention_layer):
        how = f"--student {config.student}" if config.taps is None else f"--taps {' '.join(config.taps)}"
        raise UserError(
            f"{config.store} holds attention of layer {plan.attention_layer}, {student} needs {needed}; "
            f"make a store with `python -m jobs.precompute {how}`"
        )


def check_views(config: DistillConfig, store: Store) -> None:
    """Check that the store has logits of the crops that the student will see.

    Raises:
        UserError: it has not; the message says which it has.
    """
    if config.which_logits != "views":
        return
    views = store.views
    if views is None:
        raise UserError(
            f"{config.store} has no logits of crops, or not all of them yet: add them by its jobs.precompute command with --views all, "
            "or choose --logits image"
        )
    if views.top is not None and config.temperature < 1:
        raise UserError(
            f"{config.store} has the {views.top} largest logits of crops, which say nothing of the others at --temperature "
            f"{config.temperature:g}: choose one of at least 1, or --logits image"
        )
    if views.top is not None and (whole := LOGIT_PARTS.intersection(parts_of(config.arm)) - {"kd"}):
        raise UserError(
            f"{config.store} has the {views.top} largest logits of crops, and {' and '.join(sorted(whole))} need those of all classes: "
            "choose an arm with kd instead, --logits image, or --live"
        )
    there = "resized" if views.resized else "padded"
    wanted = there if config.crop == "auto" else config.crop
    if wanted != there:
        raise UserError(
            f"{config.store} has the logits of {there} crops, not of {wanted} ones: choose --crop {there}, or --logits image; or give a "
            f"store its logits of {wanted} crops by jobs.precompute with --views 16 --crop {wanted}"
        )
    if views.resized:
        return
    if config.padding > views.padding or (views.count is not None and config.padding != views.padding):
        raise UserError(
            f"{config.store} has the logits of crops with a padding of {views.padding}, not {config.padding}: "
            f"choose --padding {views.padding}, or --logits image"
        )


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
