"""The teacher's logits of crops of the training images: a student gets those of the crop it sees, as if the teacher ran during training.

With padding p and flips there are (2p + 1)^2 * 2 padded crops of an image, 162 for p = 4. A store can hold the logits of all of them, or of
some random crops, padded or resized, to which students are then restricted (Beyer et al. 2022, "Knowledge distillation: A good teacher is
patient and consistent"; Shen, Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition").
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igkd.base.choices import Crop, Forwards
from igkd.base.errors import UserError
from igkd.base.storage import filesystem, is_local
from igkd.config.optimisation import FewCrops
from igkd.images.views import LARGE, View, are_resized, every_crop, few_crops, move
from igkd.store import Plan, Store, ViewsPlan
from igkd.store.forwards import PER_PASS, Answer
from igkd.store.top_logits import MANY, bytes_of_crop, largest

SEED = 0


def count_of(views: str) -> int | None:
    """How many crops of each image `--views` asks for; None for all.

    Raises:
        UserError: the value is neither "all" nor a number of at least 1.
    """
    if views == "all":
        return None
    if not (views.isascii() and views.isdecimal() and 1 <= int(views) < 10_000):
        raise UserError(f"--views {views} must be all, none, or a number of crops of each image, from 1 to 9999")
    return int(views)


def make_views_plan(views: str, padding: int, plan: Plan, engine: Forwards, crop: Crop = "auto", top: int = 32) -> ViewsPlan:
    """The plan of a store's views.

    Args:
        views: "all" or a number, as `--views` has it.
        padding: pixels of crop on each side.
        plan: the store's plan.
        engine: the engine of the forward passes.
        crop: which crops, as `--crop` has it.
        top: how many of many logits are kept, as `--top` has it.

    Raises:
        UserError: a setting is invalid, or all crops are too many for images of this size.
    """
    if not 0 <= padding <= max(plan.image_shape):
        raise UserError(f"--padding must be between 0 and the {max(plan.image_shape)} pixels of an image's side, not {padding}")
    if top < 0:
        raise UserError(f"--top must be at least 1, or 0 to keep all logits, not {top}")
    count, classes = count_of(views), len(plan.classes)
    check_size(views, crop, padding, plan.image_shape, plan.rows, classes, top)
    resized = are_resized(crop, plan.image_shape) and count is not None
    return ViewsPlan(
        ids_sha256=plan.ids_sha256,
        rows=plan.rows,
        rows_per_file=plan.rows_per_file,
        store=plan.identity,
        teacher=plan.teacher,
        classes=classes,
        padding=0 if resized else padding,
        count=count,
        resized=resized,
        top=kept(classes, top),
        seed=SEED,
        engine=engine,
    )


def kept(classes: int, top: int) -> int | None:
    """How many of a crop's largest logits are kept; None if all are."""
    return top if top and classes > max(MANY, top) else None


def check_size(views: str, crop: Crop, padding: int, shape: tuple[int, int], rows: int, classes: int, top: int) -> None:
    """Check that all crops, if that is what `--views` asks for, are not too many.

    Args:
        shape: (height, width) of the images.
        rows: number of images.
        classes: the teacher's.
        top: how many of many logits are kept, as `--top` has it.

    Raises:
        UserError: they are.
    """
    if count_of(views) is not None:
        return
    if crop == "resized":
        raise UserError("--views all is for padded crops, since there are too many resized ones: give a number, such as --views 16")
    if max(shape) > LARGE:
        crops = 2 * (2 * padding + 1) ** 2 * rows
        raise UserError(
            f"--views all is for images of at most {LARGE} pixels a side: of these, it would take "
            f"{in_words(crops * bytes_of_crop(classes, kept(classes, top)))} and {crops:,} forward passes; give a number of random "
            "crops of each image instead, such as --views 16"
        )


def bytes_of(plan: ViewsPlan) -> int:
    """Bytes of all views; Parquet's compression gains little on logits."""
    return plan.rows * plan.bytes_per_image


def in_words(size: int) -> str:
    """A number of bytes as text with a unit."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def check_space(uri: str, plan: ViewsPlan) -> None:
    """Check that views fit on the store's disk; does nothing for a store on S3.

    Raises:
        UserError: they do not fit; the message says how much is needed and how much is free.
    """
    fs, root = filesystem(uri)
    if not is_local(fs):
        return
    there = next(path for path in (Path(root), *Path(root).parents) if path.exists())
    free, needed = shutil.disk_usage(there).free, bytes_of(plan)
    if free < needed:
        raise UserError(
            f"the views take about {in_words(needed)}, and where {uri} is only {in_words(free)} are free: free some, choose another "
            "--store, or fewer crops by --views N"
        )


def few_of(plan: ViewsPlan) -> FewCrops | None:
    """The few crops of each image that a plan asks for; None if it asks for all."""
    return None if plan.count is None else FewCrops(count=plan.count, seed=plan.seed, resized=plan.resized)


def crops_of(plan: ViewsPlan, ids: NDArray[np.int64], shape: tuple[int, int]) -> View:
    """The crops of B images of (H, W) pixels that a plan asks for: fields of shape (B, crops)."""
    few = few_of(plan)
    if few is not None:
        return few_crops(few, ids, plan.padding, shape)
    return every_crop(plan.padding).each(lambda values: values.expand(len(ids), -1))


def view_logits(answer: Answer, pixels: Tensor, ids: NDArray[np.int64], plan: ViewsPlan) -> dict[str, NDArray[np.generic]]:
    """The teacher's logits of the crops of B images.

    Args:
        answer: the teacher's forward pass.
        pixels: uint8 (B, 3, H, W).
        ids: int64 (B,), the images' ids.

    Returns:
        the columns of the views: "views", float16 (B, *plan.places, plan.values), and, if only the largest logits are kept, "view_classes",
        int32 (B, *plan.places, plan.top).

    Raises:
        UserError: a logit is not finite, or too large for float16; the message names the image.
    """
    shape = (pixels.shape[2], pixels.shape[3])
    crops = crops_of(plan, ids, shape)
    together = max(1, (1 if max(shape) > LARGE else 8) * PER_PASS // plan.crops)
    values, classes = torch.zeros(len(ids), plan.crops, plan.values).half(), torch.zeros(len(ids), plan.crops, plan.top or 0).int()
    for start in range(0, len(ids), together):
        some = slice(start, start + together)
        view = crops.each(lambda values, some=some: values[some].flatten())  # type: ignore[misc]
        logits = answer(move(pixels[some].repeat_interleave(plan.crops, dim=0), view))
        if not (logits.abs() < torch.finfo(torch.float16).max).all():
            wrong = int((~(logits.abs() < torch.finfo(torch.float16).max)).any(dim=1).nonzero()[0, 0]) // plan.crops
            raise UserError(
                f"the teacher's logits of a crop of image {ids[start + wrong]} are no numbers, or above 65,504: it is of no use"
            )
        if plan.top is not None:
            logits, names = largest(logits, plan.top)
            classes[some] = names.view(-1, plan.crops, plan.top)
        values[some] = logits.view(-1, plan.crops, plan.values).half()
    found = {"views": values} if plan.top is None else {"views": values, "view_classes": classes}
    return {name: column.view(len(ids), *plan.places, column.shape[-1]).numpy() for name, column in found.items()}


def views_of_part(answer: Answer, store: Store, plan: ViewsPlan, part: int) -> dict[str, NDArray[np.generic]]:
    """The rows of one part of the views, computed from the pictures in the store: column image_id and those of `view_logits`."""
    samples, _ = store.samples([part])
    return {"image_id": samples.ids, **view_logits(answer, samples.pixels, samples.ids, plan)}
