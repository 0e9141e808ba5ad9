"""Export a checkpoint as a file for devices: igkd export --checkpoint DIR --format onnx-int8 --out FILE.onnx

The file is written only after it was compared with the checkpoint on real images: its logits must be equal up to rounding; with int8, its
accuracy may fall by at most --max-drop. The images are the validation split, never the test set; int8 is calibrated on training images.
`igkd.deployment.formats` describes the file's input and output.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igkd.base.choices import Format
from igkd.base.errors import UserError, first_line, run_cli
from igkd.base.random_draws import stratified_choice, validation_mask
from igkd.base.storage import check_writable, write_bytes
from igkd.config.command_line import parse
from igkd.config.export import ExportConfig
from igkd.deployment import formats
from igkd.deployment.formats import Logits, Pixels
from igkd.evaluation.evaluate import matching_samples, predict
from igkd.images.open import open_images, tell
from igkd.images.samples import Samples
from igkd.images.source import ImageSource
from igkd.networks.network import Classifier
from igkd.networks.open import open_teacher
from igkd.store import Store

CALIBRATION = 256
"""Number of training images that int8 is calibrated on, with equally many of each class."""
A_LITTLE = 0.05
"""Drop of accuracy up to which someone may want an int8 file all the same; more is an error of the calibration."""
TOLERANCE = 1e-3
"""Largest difference of a float32 file's logits, relative to the largest logit: rounding causes about 1e-6, a wrong layer about 1."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A file's results on validation images compared with the checkpoint's."""

    images: int
    """Number of validation images."""
    accuracy: float
    checkpoint_accuracy: float
    agreement: float
    """Share of the images that both classify alike."""
    largest_difference: float
    """Largest difference of a logit over all images."""
    largest_logit: float
    """Largest absolute value of the checkpoint's logits."""

    @property
    def drop(self) -> float:
        return self.checkpoint_accuracy - self.accuracy


def compare(logits: Logits, reference: Logits, labels: NDArray[np.int64]) -> Check:
    """Compare two networks' logits (N, classes) of the same labelled images."""
    answers, expected = logits.argmax(1), reference.argmax(1)
    return Check(
        images=len(labels),
        accuracy=float((answers == labels).mean()),
        checkpoint_accuracy=float((expected == labels).mean()),
        agreement=float((answers == expected).mean()),
        largest_difference=float(np.abs(logits - reference).max()),
        largest_logit=float(np.abs(reference).max()),
    )


def refuse(check: Check, kind: Format, max_drop: float) -> None:
    """Raise UserError if a file's results differ too much from the checkpoint's."""
    allowed = TOLERANCE * max(1.0, check.largest_logit)
    if kind != "onnx-int8" and not check.largest_difference <= allowed:
        raise UserError(
            f"the {kind} file's logits differ from the checkpoint's by up to {check.largest_difference:.2g}, rounding explains at most "
            f"{allowed:.2g}; nothing was written: try other versions of torch, onnxscript and onnxruntime"
        )
    if not check.drop <= max_drop:
        allow = f"allow it by --max-drop {math.ceil(100 * check.drop) / 100}, or " if check.drop <= A_LITTLE else ""
        raise UserError(
            f"the {kind} file's accuracy is {check.accuracy:.2%} where the checkpoint's is {check.checkpoint_accuracy:.2%}, on "
            f"{check.images:,} validation images, of which each is {1 / check.images:.2%}: it falls by more than --max-drop {max_drop}; "
            f"nothing was written: {allow}take --format onnx"
        )


def export(config: ExportConfig) -> dict[str, Any]:
    """Convert, check, and only then write; gives the file's path and bytes, and the check as JSON values.

    Raises:
        UserError: the checkpoint or the images are missing or do not fit each other; the file's results differ too much from the
            checkpoint's; or the file cannot be written.
    """
    out, name = Path(config.out), f"the checkpoint {config.checkpoint}"
    check_writable(out)
    model, card = open_teacher(config.checkpoint)
    source = training_images(config, card)
    tell(source)
    calibration, validation = read(config, model, name, source)
    reference = predict(model, validation).numpy()
    if not np.isfinite(reference).all():
        raise UserError(f"{name} gives logits that are not all finite numbers: its weights are of no use; train it anew")
    facts: dict[str, Any] = {"format": config.format, "checkpoint_sha256": card["sha256"]}
    if calibration is not None:
        facts["calibrated"] = {"split": "train", "images": len(calibration)}
    try:
        data, check = checked_file(model, config.format, facts, calibration, validation, reference)
    except UserError:
        raise
    except Exception as error:  # what torch's exporters raise for a network that does more than they can write down
        raise UserError(f"{name} cannot be converted to {config.format} ({first_line(error)}): try another --format") from None
    print(told(check), flush=True)
    refuse(check, config.format, config.max_drop)
    write_bytes(out, data)
    return {"out": str(out), "bytes": len(data), "check": dataclasses.asdict(check)}


def checked_file(
    model: Classifier, kind: Format, facts: dict[str, Any], calibration: Pixels | None, validation: Samples, reference: Logits
) -> tuple[bytes, Check]:
    """Convert a checkpoint; gives the file's bytes and its check, made with the runtime that the file is for.

    The result of the check is also part of the file's metadata.
    """
    pixels, labels = as_decoded(validation), validation.labels.numpy()

    def metadata(check: Check) -> dict[str, str]:
        return formats.describe(model.spec, facts | {"checked": dataclasses.asdict(check)})

    if kind == "torch-export":
        program = formats.to_torch_export(model)
        check = compare(formats.run_torch_export(formats.archive(program, {}), pixels), reference, labels)
        return formats.archive(program, metadata(check)), check
    network = formats.to_onnx(model)
    if calibration is not None:
        network = formats.to_int8(network, calibration)
    check = compare(formats.run_onnx(network, pixels), reference, labels)
    return formats.with_metadata(network, metadata(check)), check


def training_images(config: ExportConfig, card: Mapping[str, Any]) -> ImageSource:
    """The images that a checkpoint was trained on: those of --images; else those named in the card of a teacher, or in the store that a
    student's card names.

    Raises:
        UserError: nothing names the images, or they are missing.
    """
    if config.images is not None:
        return open_images(config.images)
    made = card["made"].get("config", {})
    try:
        if "images" in made:
            return open_images(made["images"])
        if "store" in made:
            return open_images(Store.open(made["store"]).plan.images)
    except UserError as error:
        raise UserError(
            f"the images that {config.checkpoint} was trained on are not where they were ({error}); name them by --images"
        ) from None
    raise UserError(f"{config.checkpoint} does not say which images it was trained on; name them by --images")


def read(config: ExportConfig, model: Classifier, name: str, source: ImageSource) -> tuple[Pixels | None, Samples]:
    """Training images to calibrate int8 on (None for other formats), and the validation images, which were not trained on."""
    labels = source.checked_labels("train")
    held_out = validation_mask(labels)
    if not held_out.any():
        raise UserError(f"{source} has {len(labels)} training images, too few for a validation split (10); name more by --images")
    ids = np.flatnonzero(held_out)
    if config.limit is not None and config.limit < len(ids):
        ids = ids[stratified_choice(labels[ids], config.limit, 0, "limit")]
    validation, _ = matching_samples(model, name, source, "train", ids, config.bad_images)
    if config.format != "onnx-int8":
        return None, validation
    rest = np.flatnonzero(~held_out)
    rest = rest[stratified_choice(labels[rest], min(CALIBRATION, len(rest)), 0, "calibration")]
    return as_decoded(matching_samples(model, name, source, "train", rest, config.bad_images)[0]), validation


def as_decoded(samples: Samples) -> Pixels:
    """Pixels in the layout of an exported file's input: uint8 (N, H, W, 3)."""
    return samples.pixels.permute(0, 2, 3, 1).contiguous().numpy()


def told(check: Check) -> str:
    """A check as two lines of text."""
    return (
        f"logits    differ by at most {check.largest_difference:.3g} (the largest is {check.largest_logit:.3g})\n"
        f"accuracy  {check.checkpoint_accuracy:.2%} -> {check.accuracy:.2%} on {check.images:,} validation images, "
        f"the same answer to {check.agreement:.2%}"
    )


def main() -> None:
    done = export(parse(ExportConfig, "igkd export"))
    print(f"written   {done['out']}, {done['bytes'] / 1e6:.2f} MB")


if __name__ == "__main__":
    run_cli(main)
