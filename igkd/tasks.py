"""What a training job trains on: each worker builds the same task from the job's configuration."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igkd.augment import deranged
from igkd.classes import renumbering
from igkd.config import BadImages, DistillConfig, FewCrops, Objective, Recipe, TeacherConfig
from igkd.errors import UserError
from igkd.feed import check_sizes, check_validation
from igkd.files import absolute
from igkd.images import FILL, Record, Scaling, open_images, tell
from igkd.models import ImageClassifier, ModelSpec, values_a_channel
from igkd.randomness import stratified_choice, validation_mask
from igkd.recipes import MADE, made_for
from igkd.runs import read_object
from igkd.samples import Samples, concatenate, first_image, load_samples
from igkd.store import Plan, Store
from igkd.teachers import class_numbers, open_teacher

TEST_SIZING = "test images must have the training images' size"
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
    recipe: Recipe
    objective: Objective
    seed: int
    teacher: ImageClassifier | None = None
    """Whose student this is, if it is at hand."""
    keep_epochs: tuple[int, ...] = ()
    """After which the network as it then is becomes a checkpoint of its own."""
    maps: int = 0
    """Test images whose maps are compared with the teacher's at the end."""
    test: Callable[[], "Unseen"] | None = None
    """Gives the images that the network is judged by at the end; None where there are none, or they must not be read."""


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """A test split, decoded before the first epoch and looked at after the last."""

    samples: Samples
    """Their labels number the classes of the training images."""
    left_out: tuple[str, ...]
    """A sentence for each image that cannot be used."""
    fingerprint: str
    """Of the split."""


@dataclass
class Moments:
    """Sums over pixels, of which mean and standard deviation are made. They are whole numbers: in whatever parts the pixels come, the
    result is the same to the last digit."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.int64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.int64))

    def add(self, pixels: Tensor) -> None:
        """Take in uint8 (N, 3, H, W)."""
        for batch in pixels.split(256):
            whole = batch.to(torch.int64)
            self.count += whole[:, 0].numel()
            self.total += whole.sum(dim=(0, 2, 3))
            self.squares += (whole * whole).sum(dim=(0, 2, 3))

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of pixels in [0, 1] per channel, to four digits."""
        n, mean, std = self.count, [], []
        for total, squares in zip(self.total.tolist(), self.squares.tolist(), strict=True):
            variance = (n * squares - total * total) / (n * max(1, n - 1))
            mean.append(round(total / n / 255, 4))
            std.append(max(round(math.sqrt(variance) / 255, 4), 1e-4))
        return tuple(mean), tuple(std)


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
    moments = Moments()
    moments.add(train.pixels[:: every(len(train))])
    mean, std = moments.normalisation()
    spec = ModelSpec(
        classes=source.classes, image_shape=samples.shape, width=config.width, stride=config.stride, lean=config.lean, mean=mean, std=std
    )
    return Task(
        spec=spec,
        train=train,
        count=len(train),
        left_out=sentences(left_out),
        validation=samples.select(validation),
        recipe=config.recipe,
        objective=Objective(),
        seed=config.seed,
        keep_epochs=config.keep_epochs,
    )


def check_teacher(config: TeacherConfig) -> None:
    """Find before any picture but the first is read what would end a teacher's run.

    Raises:
        UserError: there are no images, too few of them, or batches too small for the network or the workers.
    """
    source = open_images(config.images)
    validation = validation_mask(source.checked_labels("train"))
    check_sizes(int((~validation).sum()), config.batch_size, config.workers)
    check_validation(int(validation.sum()), config.workers)
    if config.batch_size > 1:
        return
    first = first_image(source, "train", config.bad_images).shape
    shape = (first[0], first[1]) if config.image_size is None else (config.image_size, config.image_size)
    spec = ModelSpec(classes=source.classes, image_shape=shape, width=config.width, stride=config.stride, lean=config.lean)
    check_batch_size(spec, config.recipe)


def check_student(config: DistillConfig, store: Store) -> None:
    """Refuse images too few, or batches too small, for a student's workers; reads no picture.

    Raises:
        UserError: saying what is needed.
    """
    validation = store.column("validation")
    check_sizes(round(config.share * int((~validation).sum())), config.batch_size, config.workers)
    check_validation(int(validation.sum()), config.workers)


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
    views = config.which_logits == "views"
    if ingest_of(config, store) == "stream":
        train = None
        validation, moments = look_through(store, every(int((~held_out).sum())))
    else:
        samples, held_out = rows or store.samples(views=views)
        train, validation = samples.select(~held_out), samples.select(held_out)
        train, moments = train.select(some_of(train, config)), Moments()
        moments.add(train.pixels[:: every(len(train))])

    spec = student_spec(config, plan)
    if config.normalise:
        mean, std = moments.normalisation()
        spec = replace(spec, mean=mean, std=std)
    return Task(
        spec=spec,
        train=None if train is None else mixed_up(train, config),
        count=int((~held_out).sum()) if train is None else len(train),
        validation=validation,
        recipe=config.training,
        objective=replace(config.objective, crops=crops_of(store) if views else None),
        seed=config.seed,
        teacher=teacher,
        maps=config.maps,
    )


def student_spec(config: DistillConfig, plan: Plan) -> ModelSpec:
    """The network of a student, for pixels as they are."""
    return ModelSpec(
        classes=plan.classes, image_shape=plan.image_shape, cut=config.cut, width=plan.width, stride=plan.stride, lean=config.lean,
        short_side=plan.short_side, interpolation=plan.interpolation,
    )  # fmt: skip


def check_batch_size(spec: ModelSpec, recipe: Recipe) -> None:
    """Refuse steps of one image of which a batch normalisation would see one value a channel, which has no variance.

    Raises:
        UserError: saying what is needed.
    """
    scale = 0.75 if recipe.low_resolution_epochs else 1.0
    if recipe.batch_size == 1 and values_a_channel(spec, scale) == 1:
        height, width = (round(side * scale) for side in spec.image_shape)
        raise UserError(
            f"--batch-size 1 is too small: at {height}x{width} pixels this network's last feature maps have a single pixel, and batch "
            "normalisation needs two values a channel; use --batch-size 2 or more"
        )


def crops_of(store: Store) -> FewCrops | None:
    """The crops that students keep to, where a store has the logits of only some."""
    plan = store.views
    return None if plan is None or plan.count is None else FewCrops(count=plan.count, seed=plan.seed)


def decided(config: DistillConfig, store: Store) -> DistillConfig:
    """The configuration with what it leaves to store and machine decided: as its run began, if it has begun, be it on a machine with
    another memory; else by what store and machine have now.

    Raises:
        UserError: its directory's config.json is damaged, or a share of the rows cannot be streamed.
    """
    earlier = Path(config.out) / "config.json"
    begun = read_object(earlier) if earlier.exists() else {}
    if config.logits not in ("image", "views"):
        if begun.get("logits") in ("image", "views"):
            views = begun["logits"] == "views"
        else:
            views = "kd" in config.arm.split("+") and not config.live and store.views is not None
        live = config.live or (config.logits == "crop" and not views)
        config = replace(config, logits="views" if views else "image", live=live)
    if config.ingest == "auto" and begun.get("ingest") in ("resident", "stream"):
        return replace(config, ingest=begun["ingest"])
    return replace(config, ingest=ingest_of(config, store))


def unseen_by_teacher(config: TeacherConfig) -> Unseen:
    """The images that a teacher is judged by.

    Raises:
        UserError: there are none, or one cannot be used.
    """
    source = open_images(config.images)
    resize = config.image_size is not None
    shape = (config.image_size, config.image_size) if config.image_size else first_image(source, "train", config.bad_images).shape[:2]
    return read_unseen(config.images, source.classes, shape, resize, config.bad_images)


def unseen_by_student(config: DistillConfig, store: Store) -> Unseen | None:
    """The images that a student is judged by; None where its configuration names none.

    Raises:
        UserError: there are none, they are of other classes than the store's, or one cannot be used.
    """
    if config.test_images is None:
        return None
    plan = store.plan
    found = read_unseen(config.test_images, plan.classes, plan.image_shape, plan.resize, config.bad_images, plan.scaling)
    if config.maps and len(found.samples) < 2:
        raise UserError(f"{config.test_images} has one test image, and --maps {config.maps} compares maps of several; use --maps 0")
    return found


def read_unseen(
    images: str, classes: tuple[str, ...], shape: tuple[int, int], resize: bool, bad_images: BadImages, scaling: Scaling = FILL
) -> Unseen:
    """The test split of a source; one process decodes the same images once.

    Args:
        classes: of the training images.
        shape: (H, W) that every image must have, or with `resize` is scaled and cropped to, as `scaling` says.

    Raises:
        UserError: there are no images, they are of other classes, or one cannot be used.
    """
    source = open_images(images)
    tell(source)
    source.checked_labels("test")
    numbers = renumbering(classes, source.classes, "the network to be trained", images, "give test images of the same classes")
    fingerprint = source.fingerprint("test")
    samples, left_out = _decoded(str(source), fingerprint, shape, resize, bad_images, scaling)
    return Unseen(samples=replace(samples, labels=torch.from_numpy(numbers)[samples.labels]), left_out=left_out, fingerprint=fingerprint)


@lru_cache(maxsize=1)
def _decoded(
    images: str, fingerprint: str, shape: tuple[int, int], resize: bool, bad_images: BadImages, scaling: Scaling
) -> tuple[Samples, tuple[str, ...]]:
    """The test split of a source, of this fingerprint."""
    source = open_images(images)
    everything = np.arange(len(source.labels("test")))
    samples, left_out = load_samples(source, "test", everything, shape, resize, bad_images, TEST_SIZING, scaling)
    return samples, sentences(left_out)


def some_of(train: Samples, config: DistillConfig) -> NDArray[np.bool_]:
    """The share of the training images that a run sees, stratified by class and drawn by its seed: bool (N,)."""
    return stratified_choice(train.labels.numpy(), round(config.share * len(train)), config.seed, "share")


def for_workers(config: DistillConfig) -> DistillConfig:
    """The configuration for processes with another working directory. Test images come to them decoded."""
    return replace(config, store=absolute(config.store), test_images=None)


def fingerprints(config: DistillConfig) -> dict[str, str]:
    """What identifies the runs of students of a store besides their settings. Test images do not: nothing is learned from them.

    Raises:
        UserError: the store is not there.
    """
    store = Store.open(config.store)
    found = {"store_fingerprint": store.fingerprint()}
    views = store.views_fingerprint()
    return found if views is None else found | {"views_fingerprint": views}


def judged_otherwise(rows: Iterable[tuple[Mapping[str, Any], TeacherConfig | DistillConfig]]) -> list[str]:
    """A sentence for each finished run that was judged by other test images, or by maps of another number of them, than is asked for now.

    Args:
        rows: result and configuration asked for, of each.
    """
    fingerprints: dict[str, str | None] = {}
    found = []
    for row, config in rows:
        images, maps = (config.images, 0) if isinstance(config, TeacherConfig) else (config.test_images, config.maps)
        if images is None:
            continue
        if images not in fingerprints:
            try:
                fingerprints[images] = open_images(images).fingerprint("test")
            except UserError:  # they were there when it was judged
                fingerprints[images] = None
        asked, judged = (fingerprints[images], maps), (row.get("test", {}).get("images_fingerprint"), row.get("config", {}).get("maps", 0))
        if asked[0] is not None and asked != judged:
            found.append(
                f"{config.out} was judged by other test images or another --maps; "
                f"`python -m igkd.evaluate --checkpoint {config.out} --images {images}` judges it by these"
            )
    return found


def identity(config: DistillConfig, found: dict[str, str]) -> dict[str, str]:
    """Of what `fingerprints` found, what matters to a run: views may be added to a store without making others of those that use none."""
    return {name: value for name, value in found.items() if name != "views_fingerprint" or config.which_logits == "views"}


def ingest_of(config: DistillConfig, store: Store) -> Literal["resident", "stream"]:
    """How training images are read: as asked, else streamed if all rows in memory, once a worker, would take more than half of it."""
    if config.share < 1 and config.ingest == "stream":
        raise UserError("--share below 1 needs the rows in memory: choose --ingest resident")
    if config.ingest != "auto":
        return config.ingest
    height, width = store.plan.image_shape
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows: int = store.manifest["rows"]
    views = store.views if config.which_logits == "views" else None
    each = height * width * BYTES_PER_PIXEL + (0 if views is None else 2 * views.crops * views.classes)
    return "stream" if rows * each * config.workers > memory / 2 else "resident"


def look_through(store: Store, step: int) -> tuple[Samples, Moments]:
    """What a streamed run has to know before it begins: the validation images, and the sums over every `step`th training image."""
    held_out, moments, seen = [], Moments(), 0
    for part in range(store.plan.parts):
        samples, validation = store.samples([part])
        if validation.any():
            held_out.append(samples.select(validation))
        pixels = samples.pixels[torch.from_numpy(~validation)]
        moments.add(pixels[-seen % step :: step])
        seen += len(pixels)
    return concatenate(held_out), moments


def training_rows(config: DistillConfig, store: Store, part: int) -> Samples:
    """The training images of one part, as the controls want them: another image's map is that of one of the same part, or, where the
    part has no other, of a later one."""
    train = _training(config, store, part)
    if len(train) != 1 or mixed_up(train, config) is train:
        return mixed_up(train, config)
    later = (_training(config, store, (part + offset) % store.plan.parts) for offset in range(1, store.plan.parts))
    other = next((samples for samples in later if len(samples)), None)
    if other is None:
        raise UserError(f"{config.store} has one training image: there is no other whose map could be laid over it; make a larger one")
    return mixed_up(concatenate([train, other.select(np.arange(1))]), config).select(np.arange(1))


def _training(config: DistillConfig, store: Store, part: int) -> Samples:
    samples, validation = store.samples([part], views=config.which_logits == "views")
    return samples.select(~validation)


def mixed_up(samples: Samples, config: DistillConfig) -> Samples:
    """The training images as the controls want them: with another image's map; or as the published code has them, whose two programs each
    saved what they computed in a random order of their own, one the maps, the other logits and attention."""
    if config.aligned and config.content != "other":
        return samples
    partner = torch.from_numpy(deranged(len(samples), config.seed, "partner"))
    ig = None if samples.ig is None else samples.ig[partner]
    if config.aligned:
        return replace(samples, ig=ig)
    answering = torch.from_numpy(deranged(len(samples), config.seed, "partner of the logits"))
    logits, views, attention = (None if t is None else t[answering] for t in (samples.logits, samples.views, samples.attention))
    return replace(samples, ig=ig, logits=logits, views=views, attention=attention)


def open_store(config: DistillConfig) -> Store:
    """Open the store that a student learns from, where a run begins; reads no row.

    Raises:
        UserError: it is not there, unfinished, lacks what the arm needs, or is not the one that the recipe was found with; or the student
            cannot train on batches so small.
    """
    store = _fitting_store(config)
    check_batch_size(student_spec(config, store.plan), config.training)
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
    check_views(config, store)
    if store.plan.split != "train":
        raise UserError(f"{config.store} was made from the {store.plan.split} split; students learn from a store of the train split")
    return store


def check_views(config: DistillConfig, store: Store) -> None:
    """Refuse a student that would see crops of which its store has no logits.

    Raises:
        UserError: saying which it has.
    """
    if config.which_logits != "views":
        return
    views = store.views
    if views is None:
        raise UserError(
            f"{config.store} has no logits of crops, or not all of them yet: add them by its jobs.precompute command with --views all, "
            "or choose --logits image"
        )
    if config.padding > views.padding or (views.count is not None and config.padding != views.padding):
        raise UserError(
            f"{config.store} has the logits of crops with a padding of {views.padding}, not {config.padding}: "
            f"choose --padding {views.padding}, or --logits image"
        )


def open_teacher_of(config: DistillConfig) -> ImageClassifier | None:
    """The teacher that a student's configuration names, if it does.

    Raises:
        UserError: it is needed and not named, cannot be opened, or is not the one that the store was made with.
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
    numbers = class_numbers(teacher, f"the teacher {config.teacher}", config.store, store.plan.classes, "make a store with this teacher")
    if not np.array_equal(numbers, np.arange(len(numbers))):
        raise UserError(f"{config.teacher} is not the teacher that {config.store} was made with: its classes are in another order")
    return teacher


def sentences(left_out: list[tuple[Record, str]]) -> tuple[str, ...]:
    """A sentence for each image that was left out."""
    return tuple(f"left out image {record.image_id} ({record.name}): it {reason}" for record, reason in left_out)


def every(count: int) -> int:
    """The step by which at most 10,000 of so many training images are looked at for mean and standard deviation of the pixels."""
    return max(1, -(-count // 10_000))
