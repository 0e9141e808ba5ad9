"""The images that a network is judged by at the end."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from igkd.base.choices import BadImages
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.teacher import TeacherConfig
from igkd.images.class_names import renumbering
from igkd.images.codec import FILL, Scaling
from igkd.images.open import open_images, tell
from igkd.images.samples import Samples, first_image, load_samples, sentences
from igkd.store import Store

TEST_SIZING = "test images must have the training images' size"


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """A test split, decoded before the first epoch and looked at after the last."""

    samples: Samples
    """Their labels number the classes of the training images."""
    left_out: tuple[str, ...]
    """A sentence for each image that cannot be used."""
    fingerprint: str
    """Of the split."""


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
    samples, left_out = decoded_test_split(str(source), fingerprint, shape, resize, bad_images, scaling)
    return Unseen(samples=replace(samples, labels=torch.from_numpy(numbers)[samples.labels]), left_out=left_out, fingerprint=fingerprint)


@lru_cache(maxsize=1)
def decoded_test_split(
    images: str, fingerprint: str, shape: tuple[int, int], resize: bool, bad_images: BadImages, scaling: Scaling
) -> tuple[Samples, tuple[str, ...]]:
    """The test split of a source, of this fingerprint."""
    source = open_images(images)
    everything = np.arange(len(source.labels("test")))
    samples, left_out = load_samples(source, "test", everything, shape, resize, bad_images, TEST_SIZING, scaling)
    return samples, sentences(left_out)
