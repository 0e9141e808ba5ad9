"""What a training job trains on: each worker builds the same task from the job's configuration."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from igkd.config import DistillConfig, Objective, Recipe, TeacherConfig
from igkd.errors import UserError
from igkd.images import Record, open_images
from igkd.models import ModelSpec
from igkd.randomness import validation_mask
from igkd.samples import Samples, load_samples
from igkd.store import Store


@dataclass(frozen=True, kw_only=True)
class Task:
    """One network to train."""

    spec: ModelSpec
    train: Samples
    validation: Samples
    left_out: tuple[str, ...] = ()
    """A sentence for each training image that cannot be used."""
    test: Callable[[], tuple[Samples, tuple[str, ...]]]
    """Reads the test images, and says which of them cannot be used; called once, at the end."""
    recipe: Recipe
    objective: Objective
    seed: int


def teacher_task(config: TeacherConfig) -> Task:
    """All training images of a source but its validation split.

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
    mean, std = normalisation(train)
    spec = ModelSpec(classes=source.classes, image_shape=samples.shape, width=config.width, stride=config.stride, mean=mean, std=std)

    def test() -> tuple[Samples, tuple[str, ...]]:
        everything = np.arange(len(source.checked_labels("test")))
        found, unusable = load_samples(source, "test", everything, samples.shape, resize, config.bad_images)
        return found, sentences(unusable)

    return Task(
        spec=spec,
        train=train,
        left_out=sentences(left_out),
        validation=samples.select(validation),
        test=test,
        recipe=config.recipe,
        objective=Objective(),
        seed=config.seed,
    )


def distill_task(config: DistillConfig) -> Task:
    """The rows of a store; a student of the arm and cut.

    Raises:
        UserError: the store is not there, unfinished, damaged, or lacks what the arm needs.
    """
    store = open_store(config)
    plan = store.plan
    samples, validation = store.samples()
    if not validation.any() or validation.all():
        raise UserError(f"{config.store} has {validation.sum()} validation rows of {len(samples)}; make a larger one (--limit)")

    def test() -> tuple[Samples, tuple[str, ...]]:
        source = open_images(config.test_images)
        everything = np.arange(len(source.checked_labels("test")))
        return load_samples(source, "test", everything, plan.image_shape, plan.resize)[0], ()

    return Task(
        spec=ModelSpec(classes=plan.classes, image_shape=plan.image_shape, cut=config.cut, width=plan.width, stride=plan.stride),
        train=samples.select(~validation),
        validation=samples.select(validation),
        test=test,
        recipe=config.recipe,
        objective=config.objective,
        seed=config.seed,
    )


def open_store(config: DistillConfig) -> Store:
    """Open the store that a student learns from; reads no row.

    Raises:
        UserError: it is not there, unfinished, or lacks what the arm needs.
    """
    store = Store.open(config.store)
    tap = config.objective.tap
    if tap is not None and store.plan.attention_layer is None:
        raise UserError(
            f"{config.store} holds no attention, since its teacher is of another kind than the students; choose an arm without at"
        )
    if tap is not None and tap != store.plan.attention_layer:
        raise UserError(
            f"{config.store} holds attention of layer {store.plan.attention_layer}, a student of cut {config.cut} needs layer {tap}; "
            f"make a store with `python -m jobs.precompute --cut {config.cut}`"
        )
    if store.plan.split != "train":
        raise UserError(f"{config.store} was made from the {store.plan.split} split; students learn from a store of the train split")
    return store


def sentences(left_out: list[tuple[Record, str]]) -> tuple[str, ...]:
    """A sentence for each image that was left out."""
    return tuple(f"left out image {record.image_id} ({record.name}): it {reason}" for record, reason in left_out)


def normalisation(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1] per channel, to four digits, over at most 10,000 images."""
    pixels = samples.pixels[:: max(1, len(samples) // 10_000)].double() / 255
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    return tuple(round(m, 4) for m in mean.tolist()), tuple(max(round(s, 4), 1e-4) for s in std.tolist())


def check_test_images(spec: str, classes: tuple[str, ...]) -> None:
    """Refuse test images whose classes are not those of the training images; reads no picture."""
    source = open_images(spec)
    source.checked_labels("test")
    if len(source.classes) != len(classes):
        raise UserError(f"{spec} has {len(source.classes)} classes where the training images have {len(classes)}; they must be the same")
