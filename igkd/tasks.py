"""What a training job trains on: each worker builds the same task from the job's configuration."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from igkd.augment import deranged
from igkd.config import DistillConfig, Objective, Recipe, TeacherConfig
from igkd.errors import UserError
from igkd.files import absolute
from igkd.images import Record, Scaling, open_images
from igkd.models import ImageClassifier, ModelSpec
from igkd.randomness import stratified_choice, validation_mask
from igkd.recipes import MADE, made_for
from igkd.samples import Samples, concatenate, load_samples
from igkd.store import Store
from igkd.teachers import open_teacher

BYTES_PER_PIXEL = 8
"""Of an image in memory: three of colour, four of its map, one to spare."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One network to train."""

    spec: ModelSpec
    train: Samples | None
    """None where they are streamed."""
    count: int
    """Training images."""
    validation: Samples
    left_out: tuple[str, ...] = ()
    """A sentence for each training image that cannot be used."""
    test: Callable[[], tuple[Samples, tuple[str, ...]]] | None
    """Reads the test images, and says which of them cannot be used; called once, at the end. None where they must not be read."""
    recipe: Recipe
    objective: Objective
    seed: int
    teacher: ImageClassifier | None = None
    """Whose student this is, if it is at hand."""
    maps: int = 0
    """Test images whose maps are compared with the teacher's at the end."""


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
        count=len(train),
        left_out=sentences(left_out),
        validation=samples.select(validation),
        test=test,
        recipe=config.recipe,
        objective=Objective(),
        seed=config.seed,
    )


def distill_task(
    config: DistillConfig, teacher: ImageClassifier | None = None, rows: tuple[Samples, NDArray[np.bool_]] | None = None
) -> Task:
    """The rows of a store; a student of the arm and cut.

    Args:
        rows: what `Store.samples` gives, if it is in memory already.

    Raises:
        UserError: the store is not there, unfinished, damaged, or lacks what the arm needs.
    """
    store = _fitting_store(config)
    plan = store.plan
    held_out = store.column("validation")
    if not held_out.any() or held_out.all():
        raise UserError(f"{config.store} has {held_out.sum()} validation rows of {len(held_out)}; make a larger one (--limit)")
    if ingest_of(config, store) == "stream":
        train, validation = None, validation_of(store)
        sample = store.samples([0])[0]
    else:
        samples, held_out = rows or store.samples()
        train, validation = samples.select(~held_out), samples.select(held_out)
        train = train.select(some_of(train, config))
        sample = train

    test = None if config.test_images is None else partial(read_test, config.test_images, plan.image_shape, plan.resize, plan.scaling)
    spec = ModelSpec(
        classes=plan.classes, image_shape=plan.image_shape, cut=config.cut, width=plan.width, stride=plan.stride, lean=config.lean,
        short_side=plan.short_side, interpolation=plan.interpolation,
    )  # fmt: skip
    if config.normalise:
        mean, std = normalisation(sample)
        spec = replace(spec, mean=mean, std=std)
    return Task(
        spec=spec,
        train=None if train is None else mixed_up(train, config),
        count=int((~held_out).sum()) if train is None else len(train),
        validation=validation,
        test=test,
        recipe=config.training,
        objective=config.objective,
        seed=config.seed,
        teacher=teacher,
        maps=config.maps,
    )


@lru_cache(maxsize=1)
def read_test(images: str, shape: tuple[int, int], resize: bool, scaling: Scaling) -> tuple[Samples, tuple[str, ...]]:
    """The test images of a source, every one of which must be usable."""
    source = open_images(images)
    return load_samples(source, "test", np.arange(len(source.checked_labels("test"))), shape, resize, scaling=scaling)[0], ()


def some_of(train: Samples, config: DistillConfig) -> NDArray[np.bool_]:
    """The share of the training images that a run sees, stratified by class and drawn by its seed: bool (N,)."""
    return stratified_choice(train.labels.numpy(), round(config.share * len(train)), config.seed, "share")


def places(config: DistillConfig) -> dict[str, Any]:
    """Where a student's store and test images are, for processes with another working directory."""
    found: dict[str, Any] = {"store": absolute(config.store)}
    return found if config.test_images is None else found | {"test_images": str(open_images(config.test_images))}


def fingerprints(config: DistillConfig) -> dict[str, str]:
    """What identifies a student's run besides its settings.

    Raises:
        UserError: the store or the test images are not there, or their classes differ.
    """
    store = Store.open(config.store)
    found = {"store_fingerprint": store.fingerprint()}
    if config.test_images is None:
        return found
    check_test_images(config.test_images, store.plan.classes)
    return found | {"test_fingerprint": open_images(config.test_images).fingerprint("test")}


def ingest_of(config: DistillConfig, store: Store) -> Literal["resident", "stream"]:
    """How training images are read: as asked, else streamed if all rows in memory, once a worker, would take more than half of it."""
    if config.share < 1 and config.ingest == "stream":
        raise UserError("--share below 1 needs the rows in memory: choose --ingest resident")
    if config.ingest != "auto":
        return config.ingest
    height, width = store.plan.image_shape
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows: int = store.manifest["rows"]
    return "stream" if rows * height * width * BYTES_PER_PIXEL * config.workers > memory / 2 else "resident"


def validation_of(store: Store) -> Samples:
    """The validation images alone, in memory."""
    found = []
    for part in range(store.plan.parts):
        samples, validation = store.samples([part])
        if validation.any():
            found.append(samples.select(validation))
    return concatenate(found)


def training_rows(config: DistillConfig, store: Store, part: int) -> Samples:
    """The training images of one part, as the controls want them: another image's map is that of one of the same part."""
    samples, validation = store.samples([part])
    return mixed_up(samples.select(~validation), config)


def mixed_up(samples: Samples, config: DistillConfig) -> Samples:
    """The training images as the controls want them: with another image's map, or with all that is the teacher's from another image."""
    if config.aligned and config.content != "other":
        return samples
    partner = torch.from_numpy(deranged(len(samples), config.seed, "partner"))
    ig = None if samples.ig is None else samples.ig[partner]
    if config.aligned:
        return replace(samples, ig=ig)
    logits, attention = (None if t is None else t[partner] for t in (samples.logits, samples.attention))
    return replace(samples, ig=ig, logits=logits, attention=attention)


def open_store(config: DistillConfig) -> Store:
    """Open the store that a student learns from, where a run begins; reads no row.

    Raises:
        UserError: it is not there, unfinished, lacks what the arm needs, or is not the one that the recipe was found with.
    """
    store = _fitting_store(config)
    wanted = made_for(config.recipe)
    if wanted is not None and wanted != store.fingerprint():
        raise UserError(
            f"the recipe {config.recipe} was found with another store than {config.store}; "
            f'tune on this one, or delete "{MADE}" from the file to use it all the same'
        )
    return store


def _fitting_store(config: DistillConfig) -> Store:
    """The same without the recipe, whose file a worker need not see."""
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
    if config.objective.overlay > 0 and config.content == "mask" and not store.plan.has_mask:
        raise UserError(f"{config.store} holds no ground-truth masks, which only shapes has; choose another --content")
    if store.plan.split != "train":
        raise UserError(f"{config.store} was made from the {store.plan.split} split; students learn from a store of the train split")
    return store


def open_teacher_of(config: DistillConfig) -> ImageClassifier | None:
    """The teacher that a student's configuration names, if it does.

    Raises:
        UserError: it is needed and not named, cannot be opened, or is not the one that the store was made with.
    """
    if config.maps == 1 or config.maps < 0:
        raise UserError(f"--maps {config.maps} is too few: a map is compared with its own image's and with another's; use 0, or at least 2")
    if config.teacher is None:
        if config.objective.live:
            raise UserError("--live distils from the teacher itself: say where it is with --teacher DIR, or choose --no-live")
        return None
    teacher, card = open_teacher(config.teacher)
    if card["sha256"] != Store.open(config.store).plan.teacher:
        raise UserError(f"{config.teacher} is not the teacher that {config.store} was made with: its weights differ")
    return teacher


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
