"""A teacher's task: the training images of a source."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from igkd.base.errors import UserError
from igkd.base.random_draws import validation_mask
from igkd.config.optimisation import Objective
from igkd.config.teacher import TeacherConfig
from igkd.images.open import open_images
from igkd.images.samples import first_image, load_samples, sentences
from igkd.images.source import ImageSource, without_pictures
from igkd.networks.families import canonical_name
from igkd.networks.initial import Initial, initial, normalised, sizing
from igkd.networks.network import NetworkSpec
from igkd.networks.trial import check_trainable
from igkd.training.batches import check_sizes, check_validation, plan_line
from igkd.training.optimizer import check_head_rate
from igkd.training.task import Moments, Task, check_batch_size, every


def teacher_task(config: TeacherConfig) -> Task:
    """The task of training a teacher on a source's training images without its validation split.

    Raises:
        UserError: there are no images, or one cannot be used.
    """
    source = open_images(config.images)
    labels = source.checked_labels("train")
    start = start_of(config, len(source.classes))
    shape, scaling = sizing(config.network, config.init, config.image_size)
    ids = np.arange(len(labels))
    samples, left_out = load_samples(source, "train", ids, shape, shape is not None, config.bad_images, scaling=scaling)
    validation = validation_mask(labels)[samples.ids]
    train = samples.select(~validation)
    check_sizes(len(train), config.batch_size, config.workers)  # again: pictures that cannot be used were left out
    moments = Moments()
    moments.add(train.pixels[:: every(len(train))])
    mean, std = moments.normalisation()
    spec = NetworkSpec(
        name=config.network, classes=source.classes, image_shape=samples.shape, mean=mean, std=std,
        short_side=scaling.short_side, interpolation=scaling.interpolation,
    )  # fmt: skip
    if start is not None:
        mean, std = normalised(spec, start)
        spec = replace(spec, mean=mean, std=std)
    return Task(
        spec=spec,
        initial=None if start is None else start.state,
        train=train,
        count=len(train),
        left_out=sentences(left_out),
        validation=samples.select(validation),
        optimisation=config.optimisation,
        objective=Objective(),
        seed=config.seed,
        keep_epochs=config.keep_epochs,
    )


def teacher_line(config: TeacherConfig, labels: NDArray[np.int64], classes: Sequence[str]) -> str:
    """What was found and what it comes to, as a line.

    Args:
        labels: int64 (N,), of the training images.
        classes: names.
    """
    found = f"{len(labels):,} training pictures of {len(classes):,} classes{without_pictures(labels, classes)}"
    held_out = int(validation_mask(labels).sum())
    return plan_line(found, held_out, len(labels) - held_out, config.optimisation)


def start_of(config: TeacherConfig, classes: int) -> Initial | None:
    """The weights that a teacher starts from; None for random ones.

    Raises:
        UserError: they cannot be had, or do not fit.
    """
    return None if config.init is None else initial(canonical_name(config.network), classes, config.init)


def untrained_spec(config: TeacherConfig, source: ImageSource) -> NetworkSpec:
    """The spec of a teacher before it is trained on a source: its name, the classes, and the size of the pictures, of which it reads the
    first at most."""
    shape = sizing(config.network, config.init, config.image_size)[0]
    if shape is None:
        first = first_image(source, "train", config.bad_images).shape
        shape = (first[0], first[1])
    return NetworkSpec(classes=source.classes, image_shape=shape, name=config.network)


def check_teacher(config: TeacherConfig) -> None:
    """Check a teacher's settings; reads no picture but the first.

    Raises:
        UserError: there is no such network, or it is of no use; there are no or too few images, or all are of one class; or batches are too
            small for the network or the workers.
    """
    canonical_name(config.network)
    source = open_images(config.images)
    if len(source.classes) < 2:
        raise UserError(f"{source} has one class, {source.classes[0]}: a classifier needs two")
    validation = validation_mask(source.checked_labels("train"))
    check_sizes(int((~validation).sum()), config.batch_size, config.workers)
    check_validation(int(validation.sum()), config.workers)
    spec = untrained_spec(config, source)
    check_trainable(spec, config.lowest_scale)
    check_batch_size(spec, config.optimisation)
    check_head_rate(spec, config.optimisation)
