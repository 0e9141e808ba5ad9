"""The training images of a student: which rows of its store they are, and how controls mix up the teacher's signals."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from igkd.base.errors import UserError
from igkd.base.random_draws import stratified_choice
from igkd.config.distill import DistillConfig
from igkd.images.samples import Samples, concatenate
from igkd.store import Store
from igkd.training.augment import deranged
from igkd.training.task import Moments


def some_of(train: Samples, config: DistillConfig) -> NDArray[np.bool_]:
    """The training images that a run with --share uses, stratified by class and drawn by its seed: bool (N,)."""
    return stratified_choice(train.labels.numpy(), round(config.share * len(train)), config.seed, "share")


def look_through(store: Store, step: int) -> tuple[Samples, Moments]:
    """What a streamed run needs before it starts: the validation images, and the sums over every `step`th training image."""
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
    """The training images of one part, changed by `mixed_up` if the control needs that.

    Another image's map is then that of an image of the same part or, if the part has only one, of a later part.
    """
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
    """The training images with another image's map, for the control "other"; or mixed up as by the published code.

    There, two programs saved their results, each in its own random order: one the maps, the other logits and attention.
    """
    if config.aligned and config.content != "other":
        return samples
    partner = torch.from_numpy(deranged(len(samples), config.seed, "partner"))
    signals = dict(samples.signals)
    signals |= {name: signals[name][partner] for name in ("ig", "gradcam") if name in signals}
    if not config.aligned:
        answering = torch.from_numpy(deranged(len(samples), config.seed, "partner of the logits"))
        signals |= {name: signals[name][answering] for name in ("logits", "views", "view_classes", "attention") if name in signals}
    return replace(samples, signals=signals)
