"""A teacher's task: the training images of a source."""

import numpy as np

from igkd.base.random_draws import validation_mask
from igkd.config.optimisation import Objective
from igkd.config.teacher import TeacherConfig
from igkd.images.open import open_images
from igkd.images.samples import first_image, load_samples, sentences
from igkd.networks.families import canonical_name
from igkd.networks.network import NetworkSpec
from igkd.training.batches import check_sizes, check_validation
from igkd.training.task import Moments, Task, check_batch_size, every


def teacher_task(config: TeacherConfig) -> Task:
    """The task of training a teacher on a source's training images without its validation split.

    Raises:
        UserError: there are no images, or one cannot be used.
    """
    source = open_images(config.images)
    labels = source.checked_labels("train")
    resize = config.image_size is not None
    shape = (config.image_size, config.image_size) if config.image_size is not None else None
    samples, left_out = load_samples(source, "train", np.arange(len(labels)), shape, resize, config.bad_images)
    validation = validation_mask(labels)[samples.ids]
    train = samples.select(~validation)
    moments = Moments()
    moments.add(train.pixels[:: every(len(train))])
    mean, std = moments.normalisation()
    spec = NetworkSpec(name=config.network, classes=source.classes, image_shape=samples.shape, mean=mean, std=std)
    return Task(
        spec=spec,
        train=train,
        count=len(train),
        left_out=sentences(left_out),
        validation=samples.select(validation),
        optimisation=config.optimisation,
        objective=Objective(),
        seed=config.seed,
        keep_epochs=config.keep_epochs,
    )


def check_teacher(config: TeacherConfig) -> None:
    """Check a teacher's settings; reads no picture but the first.

    Raises:
        UserError: there is no such network, there are no or too few images, or batches are too small for the network or the workers.
    """
    canonical_name(config.network)
    source = open_images(config.images)
    validation = validation_mask(source.checked_labels("train"))
    check_sizes(int((~validation).sum()), config.batch_size, config.workers)
    check_validation(int(validation.sum()), config.workers)
    if config.batch_size > 1:
        return
    first = first_image(source, "train", config.bad_images).shape
    shape = (first[0], first[1]) if config.image_size is None else (config.image_size, config.image_size)
    spec = NetworkSpec(classes=source.classes, image_shape=shape, name=config.network)
    check_batch_size(spec, config.optimisation)
