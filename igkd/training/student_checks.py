"""Whether a student can be trained from a store: its network, and what its arm needs. Of the store only the plan is looked at, so that it
can be checked before it is made."""

from igkd.base.choices import LOGIT_PARTS, TAP_PARTS, parts_of
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.networks.families import student_name, tap_of
from igkd.networks.network import NetworkSpec
from igkd.networks.taps import check_tap, layers_of, student_tap
from igkd.networks.trial import check_trainable, check_twice_differentiable
from igkd.store import Plan, ViewsPlan
from igkd.training.batches import check_sizes, check_validation
from igkd.training.optimizer import check_head_rate
from igkd.training.task import check_batch_size


def student_spec(config: DistillConfig, plan: Plan) -> NetworkSpec:
    """The spec of a student's network, without normalisation of pixels. It says how pictures are prepared, so that every command prepares
    them as the store did: one whose pictures had the right size and were not scaled has no `short_side`."""
    return NetworkSpec(
        name=student_name(config.student, plan.teacher_network, plan.image_shape), classes=plan.classes, image_shape=plan.image_shape,
        short_side=plan.short_side if plan.resize else 0, interpolation=plan.interpolation,
    )  # fmt: skip


def check_network(config: DistillConfig, plan: Plan) -> None:
    """Try a student's network on pictures of a store's size, by a step as the settings will have it.

    Raises:
        UserError: it cannot be trained on them; the message says why.
    """
    spec = student_spec(config, plan)
    check_trainable(spec, config.lowest_scale)
    if config.objective.map_weight > 0:
        check_twice_differentiable(spec)
    check_batch_size(spec, config.optimisation)
    check_head_rate(spec, config.optimisation)


def check_counts(config: DistillConfig, images: int, validation: int) -> None:
    """Check that there are enough images, and batches are large enough, for a student's workers.

    Args:
        images: number of images of the store, those of the validation split included.
        validation: number of those.

    Raises:
        UserError: they are not; the message says what is needed.
    """
    if not 0 < validation < images:
        raise UserError(f"{config.store} has {validation} validation rows of {images}; make a larger one (--limit)")
    check_sizes(round(config.share * (images - validation)), config.batch_size, config.workers)
    check_validation(validation, config.workers)


def check_fits(config: DistillConfig, plan: Plan, views: ViewsPlan | None) -> None:
    """Check that a store has what a student's arm needs.

    Args:
        plan: the store's, which may not have been made yet.
        views: the plan of its views; None if it has none.

    Raises:
        UserError: it has not; the message says what to do.
    """
    if not TAP_PARTS.isdisjoint(parts_of(config.arm)):
        check_attention(config, plan)
    uses_maps = config.objective.overlay > 0 or config.objective.map_weight > 0
    if uses_maps and config.explanation == "gradcam" and plan.gradcam_layer is None:
        raise UserError(f"{config.store} holds no Grad-CAM, which --explanation gradcam needs; make a store with --gradcam")
    if uses_maps and config.content == "mask" and not plan.has_mask:
        raise UserError(f"{config.store} holds no ground-truth masks, which only shapes has; choose another --content")
    if len(plan.classes) < 2 and not {"dkd", "lskd"}.isdisjoint(parts_of(config.arm)):
        raise UserError(f"{config.arm} compares a teacher's logits with each other, and {config.store} has one class: choose another --arm")
    check_views(config, views)
    if plan.split != "train":
        raise UserError(f"{config.store} was made from the {plan.split} split; students learn from a store of the train split")


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


def check_views(config: DistillConfig, views: ViewsPlan | None) -> None:
    """Check that the store has logits of the crops that the student will see.

    Raises:
        UserError: it has not; the message says which it has.
    """
    if config.which_logits != "views":
        return
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
