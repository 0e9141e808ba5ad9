"""The steps from images to rows of the store: plan, read, attribute, write. `jobs.precompute` distributes them over workers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from igkd import attribution, store
from igkd.base.choices import BadImages
from igkd.base.errors import UserError
from igkd.base.random_draws import stratified_choice, validation_mask
from igkd.config.precompute import PrecomputeConfig
from igkd.images.class_names import named
from igkd.images.codec import pixel_hash, scale_mask
from igkd.images.samples import decode_all, first_image
from igkd.images.source import ImageSource, Record
from igkd.networks.network import Classifier, NetworkSpec, parameter_count
from igkd.networks.renumbered import class_numbers
from igkd.store.engine import Begun, how_maps_are_computed, some_images
from igkd.store.kept_layers import kept_attention, kept_gradcam
from igkd.store.signals import SIGNALS, Answers, columns_of

Rows = dict[str, NDArray[Any]]
"""Columns of equal length; bytes and strings as object arrays."""
MAX_ROWS_PER_FILE = 250
# Keeps the decoded rows of a part well below the size of one block of Ray Data (128 MiB).
MAX_BYTES_PER_PART = 48 << 20


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which images go into a store."""

    ids: NDArray[np.int64]
    """int64 (n,), ascending."""
    validation: NDArray[np.bool_]
    """bool (n,): True for validation images."""
    numbers: NDArray[np.int64]
    """int64 (classes,): the label in the store for each label of the source."""

    def part(self, plan: store.Layer, part: int) -> "Selection":
        rows = slice(part * plan.rows_per_file, (part + 1) * plan.rows_per_file)
        return Selection(self.ids[rows], self.validation[rows], self.numbers)


def make_plan(
    config: PrecomputeConfig,
    source: ImageSource,
    model: Classifier,
    teacher_sha: str,
    gpu: bool = False,
    begun: Begun | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[store.Plan, Selection]:
    """Decide everything about a store before computing anything.

    Args:
        teacher_sha: sha256 of the model's weights.
        gpu: whether the maps will be computed on GPUs, which decides which engine is fastest.
        begun: how existing parts of the store were computed; the others are then computed in the same way.
        say: called with lines that say how maps are computed and why.

    Raises:
        UserError: the teacher does not fit the images, a setting is invalid, or the engine fails with this teacher.
    """
    labels = source.checked_labels(config.split)
    spec = model.spec
    numbers = class_numbers(model, f"the teacher {config.teacher}", config.images, source.classes, "train a teacher on these images")
    check_settings(config)
    shape = image_shape(config, source, spec)
    validation = validation_mask(labels) if config.split == "train" else np.zeros(len(labels), dtype=np.bool_)
    ids = np.arange(len(labels))
    if config.limit is not None and config.limit < len(labels):
        ids = limited(labels, validation, config.limit)
    layer, attention_shape = kept_attention(config, model, shape)
    gradcam_layer, gradcam_shape = kept_gradcam(config, model, shape)
    pixels = some_images(source, config.split, ids, shape, config.image_size is not None, spec.scaling)
    engine, quadrature = how_maps_are_computed(config, model, pixels, gpu, begun, say)
    most = min(MAX_ROWS_PER_FILE, max(1, MAX_BYTES_PER_PART // (3 * shape[0] * shape[1])))
    plan = store.Plan(
        images=str(source), images_fingerprint=source.fingerprint(config.split), split=config.split,
        classes=named(tuple(source.classes[i] for i in np.argsort(numbers)), spec.classes), image_shape=shape,
        resize=config.image_size is not None, short_side=spec.short_side, interpolation=spec.interpolation, bad_images=config.bad_images,
        teacher=teacher_sha, teacher_place=config.teacher, teacher_parameters=parameter_count(model), teacher_network=spec.name,
        steps=config.steps, method=config.method, quadrature=quadrature, engine=engine,
        precision=config.precision, attention_layer=layer, attention_shape=attention_shape,
        gradcam_layer=gradcam_layer, gradcam_shape=gradcam_shape, has_mask=source.has_masks,
        ids_sha256=store.ids_hash(ids), rows=len(ids), rows_per_file=config.rows_per_file or most,
    )  # fmt: skip
    return plan, Selection(ids, validation[ids], numbers)


def check_settings(config: PrecomputeConfig) -> None:
    """Check the numbers among the settings.

    Raises:
        UserError: a number is too small; the message names it.
    """
    if config.steps < 1 or (config.limit is not None and config.limit < 1):
        raise UserError("--steps and --limit must be at least 1")
    if config.rows_per_file is not None and config.rows_per_file < 1:
        raise UserError("--rows-per-file must be at least 1")


def image_shape(config: PrecomputeConfig, source: ImageSource, spec: NetworkSpec) -> tuple[int, int]:
    """(height, width) of the images in pixels, checked against the teacher's.

    Raises:
        UserError: the teacher was trained on another size.
    """
    first = first_image(source, config.split, config.bad_images)
    shape = (config.image_size, config.image_size) if config.image_size else first.shape[:2]
    if shape != spec.image_shape:
        raise UserError(
            f"{config.images} has images of {shape[0]}x{shape[1]} pixels, the teacher {config.teacher} was trained on "
            f"{spec.image_shape[0]}x{spec.image_shape[1]}; --image-size {spec.image_shape[0]} scales and crops the images"
        )
    return shape


def limited(labels: NDArray[np.int64], validation: NDArray[np.bool_], limit: int) -> NDArray[np.int64]:
    """Ids (ascending) of a sample of `limit` images with the same share of validation images, stratified by class.

    If there are validation images, at least one is in the sample.
    """
    held_out = int(round(limit * validation.mean()))
    if validation.any() and limit > 1:
        held_out = max(1, held_out)
    parts = []
    for members, size in ((np.flatnonzero(validation), held_out), (np.flatnonzero(~validation), limit - held_out)):
        parts.append(members[stratified_choice(labels[members], size, 0, "limit")])
    return np.sort(np.concatenate(parts))


def read_rows(source: ImageSource, plan: store.Plan, selection: Selection) -> Rows:
    """Read and decode images, one row each. Images that cannot be used get a row with a `reason` and black pixels.

    Returns:
        image_id, label, validation, image, image_sha, name, reason, pixels uint8 (n, H, W, 3) and, if the source has them, mask.

    Raises:
        UserError: an image cannot be used (the message names it), unless the plan says to skip such images.
    """
    height, width = plan.image_shape
    validation = dict(zip(selection.ids.tolist(), selection.validation.tolist(), strict=True))
    rows: list[dict[str, Any]] = []

    def add(record: Record, pixels: NDArray[np.uint8] | None, reason: str) -> None:
        black = np.zeros((height, width, 3), np.uint8)
        row = {
            "image_id": record.image_id,
            "label": int(selection.numbers[record.label]),
            "validation": validation[record.image_id],
            "image": record.image,
            "image_sha": pixel_hash(black if pixels is None else pixels),
            "name": record.name,
            "reason": reason,
            "pixels": black if pixels is None else pixels,
        }
        if plan.has_mask:
            mask = np.zeros((height, width), np.bool_) if record.mask is None else record.mask
            row["mask"] = (scale_mask(mask, plan.image_shape, plan.scaling) if plan.resize else mask).astype(np.uint8)
        rows.append(row)

    on_bad: BadImages = "skip" if plan.bad_images == "skip" else "refuse"
    records = source.read(plan.split, selection.ids.tolist())  # type: ignore[arg-type]
    for record, pixels in decode_all(
        records, plan.image_shape, plan.resize, on_bad, lambda record, why: add(record, None, why), scaling=plan.scaling
    ):
        add(record, pixels, "")
    rows.sort(key=lambda row: row["image_id"])
    return {name: _column([row[name] for row in rows]) for name in rows[0]}


def _column(values: list[Any]) -> NDArray[Any]:
    if isinstance(values[0], bytes | str):
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    return np.stack([np.asarray(v) for v in values])


def plan_attributor(model: Classifier, plan: store.Plan) -> attribution.Attributor:
    """The attributor with a plan's method, engine and nodes."""
    return attribution.attributor(model, plan.method, plan.engine, plan.steps, one_pass=plan.quadrature == attribution.ONE_PASS)


def attribute_rows(
    model: Classifier, attribute: attribution.Attributor, plan: store.Plan, rows: Rows, tell: attribution.Tell = attribution.nobody
) -> Rows:
    """Replace the column `pixels` by the teacher's signals; rows with a reason get zeros.

    Args:
        tell: called again and again with the number of images whose maps are done.

    Raises:
        UserError: a signal's value is not finite in the store's precision; the message names image and value.
    """
    n, good = len(rows["image_id"]), np.flatnonzero(rows["reason"] == "")
    columns = {name: column for name, column in columns_of(plan).items() if SIGNALS[name].of_teacher}
    out = {name: np.zeros((n, *shape), dtype) for name, (shape, dtype) in columns.items()}
    if len(good):
        pixels = torch.from_numpy(np.array(rows["pixels"])[good]).permute(0, 3, 1, 2).float() / 255
        labels, ids = (torch.from_numpy(np.array(rows[name])[good]) for name in ("label", "image_id"))
        answers = Answers(model, pixels, labels, attribute(pixels, labels, ids, tell), plan)
        for name, column in sorted(out.items(), key=lambda item: item[0] != "logits"):  # what is wrong with them spoils the others
            values = SIGNALS[name].compute(answers).numpy()
            column[good] = storable(name, values, column.dtype, [(rows["image_id"][i], rows["name"][i]) for i in good])
    return {name: column for name, column in rows.items() if name != "pixels"} | out


def storable(name: str, values: NDArray[np.float32], dtype: np.dtype[Any], images: list[tuple[int, str]]) -> NDArray[Any]:
    """A signal's values, float32 (n, ...), converted to the column's dtype.

    Args:
        name: the column's name.
        images: id and name of each image.

    Raises:
        UserError: a value is not finite, or too large for the dtype; the message names image and value.
    """
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    wrong = np.argwhere(~np.isfinite(stored))
    if len(wrong) == 0:
        return stored
    (image_id, image), value = images[wrong[0][0]], values[tuple(wrong[0])]
    said = f"image {image_id} ({image}): the teacher gives {SIGNALS[name].words} with the value {value:.6g}"
    if np.isfinite(value):
        most = f"{np.finfo(dtype).max:.0f}"
        raise UserError(f"{said}, above {most}, the largest number of --precision {dtype}; --precision float32 stores it")
    raise UserError(f"{said}, which is no finite number: its weights are of no use or too large for single precision; take another teacher")


def write_rows(uri: str, plan: store.Plan, part: int, ids: NDArray[np.int64], rows: Rows) -> store.Entry:
    """Write one part of the store from all of its rows.

    Args:
        ids: int64 (n,): ids of the part's images, in order.

    Returns:
        the part's entry for the manifest.

    Raises:
        UserError: the rows' ids differ from `ids`.
    """
    if len(rows["image_id"]) != len(ids):
        raise UserError(f"part {part} arrived with {len(rows['image_id'])} of {len(ids)} rows; use a smaller --rows-per-file")
    if not np.array_equal(rows["image_id"], ids):
        wrong = np.flatnonzero(rows["image_id"] != ids)[0]
        raise UserError(
            f"part {part} arrived with image {rows['image_id'][wrong]} in the place of {ids[wrong]}; run the same command again"
        )
    good = rows["reason"] == ""
    skipped = [
        {"image_id": int(i), "name": str(name), "reason": str(why)}
        for i, name, why in zip(rows["image_id"][~good], rows["name"][~good], rows["reason"][~good], strict=True)
    ]
    return store.write_part(uri, plan, part, {name: column[good] for name, column in rows.items()}, skipped)
