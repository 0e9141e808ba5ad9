"""The test images that a network is evaluated on at the end of a run."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from igkd.base.choices import BadImages
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.teacher import TeacherConfig
from igkd.images.class_names import renumbering
from igkd.images.codec import FILL, Scaling, pixel_hash
from igkd.images.open import open_images, tell
from igkd.images.samples import Samples, first_image, load_samples, sentences
from igkd.networks.initial import sizing
from igkd.store import Store

TEST_SIZING = "test images must have the training images' size"


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """A test split, decoded before the first epoch and used after the last."""

    samples: Samples
    """Labels are indices into the classes of the training images."""
    left_out: tuple[str, ...]
    """A sentence for each image that cannot be used."""
    fingerprint: str
    """Fingerprint of the split."""
    notes: tuple[str, ...] = ()
    """Sentences on what the accuracy on these images will not say."""


def unseen_by_teacher(config: TeacherConfig) -> Unseen:
    """The test images of a teacher.

    Raises:
        UserError: there are none, or one cannot be used.
    """
    source = open_images(config.images)
    shape, scaling = sizing(config.network, config.init, config.image_size)
    own = first_image(source, "train", config.bad_images).shape[:2] if shape is None else shape
    return read_unseen(config.images, source.classes, own, shape is not None, config.bad_images, scaling)


def unseen_by_student(config: DistillConfig, store: Store) -> Unseen | None:
    """The test images of a student; None if its settings name none.

    Raises:
        UserError: there are no images, they have other classes than the store, or one cannot be used.
    """
    if config.test_images is None:
        return None
    plan = store.plan
    found = read_unseen(config.test_images, plan.classes, plan.image_shape, plan.resize, config.bad_images, plan.scaling)
    if config.maps and len(found.samples) < 2:
        raise UserError(f"{config.test_images} has one test image, and --maps {config.maps} compares maps of several; use --maps 0")
    return replace(found, notes=also_trained_on(found.samples, store))


def also_trained_on(samples: Samples, store: Store) -> tuple[str, ...]:
    """A sentence on how many test images a store has, pixel by pixel, for training; none if there are none."""
    known = {sha for table in store.tables(["image_sha"]) for sha in table.column("image_sha").to_pylist()}
    count = sum(pixel_hash(pixels.numpy()) in known for pixels in samples.pixels.permute(0, 2, 3, 1))
    if not count:
        return ()
    return (f"{count:,} of {len(samples):,} are also images of the store, so the accuracy on them says little about new ones",)


def read_unseen(
    images: str, classes: tuple[str, ...], shape: tuple[int, int], resize: bool, bad_images: BadImages, scaling: Scaling = FILL
) -> Unseen:
    """The test split of a source, decoded once in a process and then kept.

    Args:
        classes: the classes of the training images.
        shape: (H, W) that every image must have; with `resize`, images are scaled and cropped to it by `scaling`.

    Raises:
        UserError: there are no images, they have other classes, or one cannot be used.
    """
    source = open_images(images)
    tell(source)
    source.checked_labels("test")
    numbers = renumbering(classes, source.classes, "the network to be trained", images, "give test images of the same classes")
    fingerprint = source.fingerprint("test")
    samples, left_out = decoded_test_split(str(source), fingerprint, shape, resize, bad_images, scaling)
    return Unseen(samples=replace(samples, labels=torch.from_numpy(numbers)[samples.labels]), left_out=left_out, fingerprint=fingerprint)


@lru_cache(maxsize=1)
def decoded_test_split(
    images: str, fingerprint: str, shape: tuple[int, int], resize: bool, bad_images: BadImages, scaling: Scaling
) -> tuple[Samples, tuple[str, ...]]:
    """The decoded test split and sentences on images left out; kept in memory, by source and fingerprint."""
    source = open_images(images)
    everything = np.arange(len(source.labels("test")))
    samples, left_out = load_samples(source, "test", everything, shape, resize, bad_images, TEST_SIZING, scaling)
    return samples, sentences(left_out)
