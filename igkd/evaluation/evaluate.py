"""Evaluate a trained network: igkd evaluate --checkpoint DIR --images SRC

Gives its accuracy and calibration, its agreement with a teacher, the similarity of its maps to the teacher's, and how well the maps mark
the pixels that its answer depends on (deletion and insertion).
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from igkd.attribution import attributor
from igkd.base import provenance
from igkd.base.choices import BadImages, Split
from igkd.base.errors import UserError, printable, run_cli
from igkd.base.random_draws import stratified_choice
from igkd.base.storage import check_writable, write_json
from igkd.config.command_line import parse
from igkd.config.evaluate import EvaluateConfig
from igkd.evaluation import metrics
from igkd.evaluation.chance import chance_of, figures_near_chance
from igkd.evaluation.map_metrics import areas, check_finite, cosine, perturbation_curves, random_maps, rank_correlation, top_overlap
from igkd.images.class_names import distinct
from igkd.images.open import open_images, tell
from igkd.images.samples import Samples, load_samples, sentences
from igkd.images.source import ImageSource
from igkd.networks.network import Classifier
from igkd.networks.open import open_teacher
from igkd.networks.renumbered import class_numbers, renumbered, restricted

SIMILARITIES = {"cosine": cosine, "rank_correlation": rank_correlation, "top_overlap": top_overlap}
CONFUSION_CLASSES = 20
"""Rows have the confusion matrix of at most this many classes."""
OWN_CLASSES = "give --images of its own classes"


def predict(model: nn.Module, samples: Samples, batch_size: int = 250) -> Tensor:
    """Logits (N, classes), on the CPU, of a network in evaluation mode."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        batches = [pixels.to(device).float() / 255 for pixels in samples.pixels.split(batch_size)]
        return torch.cat([model(batch.contiguous(memory_format=torch.channels_last)).float().cpu() for batch in batches])


@functools.lru_cache(maxsize=1)
def answers(teacher: nn.Module, samples: Samples) -> Tensor:
    """`predict` of a teacher, kept in memory for further students that this process evaluates on the same images."""
    return predict(teacher, samples)


def evaluate(
    model: Classifier,
    samples: Samples,
    *,
    teacher: Classifier | None = None,
    maps: int = 0,
    steps: int = 50,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """All measures of a network on labelled images, as JSON values.

    Args:
        model: in evaluation mode, on the device to compute on.
        samples: images of the model's size; their labels are indices into the model's classes.
        teacher: the network to compare with; same classes in the same order, same image size, same device.
        maps: number of images, stratified by class, to compute maps for: 0, or at least 2.
        steps: nodes of integrated gradients.
        progress: called with a line of text before each step that may take long.

    Returns:
        accuracy, correct, count, loss (mean, nats), calibration_error, per_class (name to accuracy, None for a class without images),
        confusion (of each class, in that order, the number of its images with each answer; left out above `CONFUSION_CLASSES` classes);
        with a teacher, teacher_accuracy and agreement; with maps, maps as `judge_maps` gives them.

    Raises:
        UserError: there are too few images for the maps, or the network's logits are not numbers.
    """
    if maps < 0 or maps == 1 or maps > len(samples):
        raise UserError(f"--maps {maps} does not fit {len(samples)} image(s): it must be 0, or at least 2 and at most the images there are")
    labels, logits = samples.labels.cpu(), predict(model, samples)
    _check_logits(logits, "the network's", "train it anew")
    correct = metrics.correct(logits, labels)
    row: dict[str, Any] = {
        "accuracy": correct / len(labels),
        "correct": correct,
        "count": len(labels),
        "loss": metrics.negative_log_likelihood(logits, labels),
        "calibration_error": metrics.calibration_error(logits, labels),
        "per_class": dict(zip(distinct(model.spec.classes), metrics.class_accuracies(logits, labels), strict=True)),
    }
    if logits.shape[1] <= CONFUSION_CLASSES:
        row["confusion"] = metrics.confusion(logits, labels).tolist()
    if teacher is not None:
        theirs = answers(teacher, samples)
        _check_logits(theirs, "the teacher's", "choose another --teacher")
        row["teacher_accuracy"] = metrics.correct(theirs, labels) / len(labels)
        row["agreement"] = metrics.agreement(logits, theirs)
    if maps:
        row["maps"] = judge_maps(model, teacher, samples.select(stratified_choice(labels.numpy(), maps, 0, "maps")), steps, progress)
    return row


def _check_logits(logits: Tensor, whose: str, remedy: str) -> None:
    """Raise UserError if they are not all finite numbers."""
    if not logits.isfinite().all():
        raise UserError(f"{whose} logits are not all finite numbers: its weights are of no use; {remedy}")


def judge_maps(
    model: Classifier, teacher: Classifier | None, samples: Samples, steps: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Compare integrated-gradients maps of the true labels: the student's with the teacher's, and both with random maps.

    All maps have the same baseline, which is also the colour of deleted pixels: the teacher's mean colour, or without a teacher the
    network's own. With different baselines, such as black and grey, maps would differ even if the networks used the same pixels. Deletion
    and insertion always measure the student's probability, also for maps of the teacher, so that the curves can be compared. A curve has
    the student's mean probability of the label at evenly spaced shares of pixels, from 0 to 1.

    Returns:
        count; baseline, in pixels of [0, 1]; with a teacher, cosine, rank_correlation and top_overlap, each as mean, standard_error and
        control, the mean for another image's map of the teacher; student, teacher (if there is one) and random, each as deletion and
        insertion, each of these as area (mean), standard_error and curve. Errors are over images.

    Raises:
        UserError: a map is not all finite numbers.
    """
    baseline = (teacher or model).spec.mean
    networks = {"student": model} if teacher is None else {"student": model, "teacher": teacher}
    ids = torch.from_numpy(samples.ids)
    # The torch engine: for so few images, compiling a graph takes longer than it saves.
    looks = {}
    for name, network in networks.items():
        progress(f"the {name}'s maps of {len(samples):,} images")
        looks[name] = attributor(network, "ig", "torch", steps, baseline)(samples.pixels, samples.labels, ids).ig.numpy()
        check_finite(looks[name], samples.ids, f"the {name}")
    row: dict[str, Any] = {"count": len(samples), "baseline": list(baseline)}
    if teacher is not None:
        for name, similarity in SIMILARITIES.items():
            own = similarity(looks["student"], looks["teacher"])
            control = similarity(looks["student"], np.roll(looks["teacher"], 1, axis=0))
            row[name] = {"mean": float(own.mean()), "standard_error": standard_error(own), "control": float(control.mean())}
    for name, values in (looks | {"random": random_maps(samples.ids, samples.shape)}).items():
        progress(f"deletion and insertion curves by maps: {name}")
        curves = perturbation_curves(model, samples.pixels, samples.labels, values, baseline=baseline)
        row[name] = {
            kind: {"area": float(areas(c).mean()), "standard_error": standard_error(areas(c)), "curve": c.mean(axis=0).tolist()}
            for kind, c in zip(("deletion", "insertion"), curves, strict=True)
        }
    return row


def standard_error(values: NDArray[np.float64]) -> float:
    """Standard error of the mean; needs at least two values."""
    return float(values.std(ddof=1) / len(values) ** 0.5)


def matching_samples(
    model: Classifier, name: str, source: ImageSource, split: Split, ids: NDArray[np.int64], bad_images: BadImages
) -> tuple[Samples, int]:
    """Load images to evaluate a network with, scaled and cropped to its size; images left out are reported on standard error.

    Args:
        name: the network's name in messages.
        ids: int64 (N,), ids in the split.

    Returns:
        the samples, with labels that are indices into the network's classes, and how many images were left out.

    Raises:
        UserError: the images have other classes, or one cannot be used.
    """
    numbers = class_numbers(model, name, str(source), source.classes, OWN_CLASSES)
    samples, left_out = load_samples(source, split, ids, model.spec.image_shape, True, bad_images, scaling=model.spec.scaling)
    for sentence in sentences(left_out):
        print(printable(sentence), file=sys.stderr, flush=True)
    return dataclasses.replace(samples, labels=torch.from_numpy(numbers)[samples.labels]), len(left_out)


def matching_teacher(text: str, model: Classifier, name: str) -> tuple[Classifier, dict[str, Any]]:
    """Open a teacher to compare a network with; gives it with its logits in the order of the network's classes, and its card.

    Args:
        text: names the teacher, as for `open_teacher`.
        name: the network's name in messages.

    Raises:
        UserError: there is no such teacher, or its classes or image size differ from the network's.
    """
    teacher, card = open_teacher(text)
    teacher, line = restricted(teacher, f"the teacher {text}", name, model.spec.classes, "give one of the same classes")
    if line is not None:
        print(f"note: {printable(line)}", file=sys.stderr, flush=True)
    teacher = renumbered(teacher, f"the teacher {text}", name, model.spec.classes, "give one of the same classes")
    if teacher.spec.image_shape != model.spec.image_shape:
        size = " and the checkpoint on ".join(f"{h}x{w}" for h, w in (teacher.spec.image_shape, model.spec.image_shape))
        raise UserError(f"the teacher {text} was trained on {size} pixels; give one of the same size")
    if teacher.spec.scaling != model.spec.scaling:
        print(
            f"note: the teacher {printable(text)} has pictures scaled by another rule than {printable(name)}; here both get the latter's, "
            "so the teacher may be less accurate than by itself",
            file=sys.stderr,
            flush=True,
        )
    return teacher, card


def evaluate_images(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a checkpoint; gives the result row.

    Raises:
        UserError: a checkpoint or the images are missing or damaged, or do not fit each other.
    """
    started, device = provenance.now(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = f"the checkpoint {config.checkpoint}"
    model, card = open_teacher(config.checkpoint)
    source = open_images(config.images)
    tell(source)
    labels = source.checked_labels(config.split)
    teacher, teacher_card = (None, None) if config.teacher is None else matching_teacher(config.teacher, model, name)
    if teacher is not None:
        teacher = teacher.to(device).to(memory_format=torch.channels_last)
    ids = np.arange(len(labels))
    if config.limit is not None and config.limit < len(labels):
        ids = np.flatnonzero(stratified_choice(labels, config.limit, 0, "limit"))
    samples, left_out = matching_samples(model, name, source, config.split, ids, config.bad_images)
    model = model.to(device).to(memory_format=torch.channels_last)

    def progress(line: str) -> None:
        print(f"evaluate: {line}", file=sys.stderr, flush=True)

    progress(f"{len(samples):,} images")
    return {
        "job": "evaluate",
        "config": dataclasses.asdict(config),
        "checkpoint_sha256": card["sha256"],
        "teacher_sha256": teacher_card and teacher_card["sha256"],
        "images_fingerprint": source.fingerprint(config.split),
        "evaluation": evaluate(model, samples, teacher=teacher, maps=config.maps, steps=config.steps, progress=progress)
        | {"left_out": left_out},
        "provenance": provenance.provenance(provenance.command(), 0, started),
    }


def table(figures: Mapping[str, Any]) -> str:
    """The result of `evaluate` as text for a terminal."""
    lines = [f"accuracy           {figures['accuracy']:7.2%}   {figures['correct']:,} of {figures['count']:,} images"]
    if figures_near_chance(figures, len(figures["per_class"])):
        lines.append(f"                             that is near chance: {chance_of(len(figures['per_class']), figures)}")
    lines += [f"loss               {figures['loss']:7.4f}   nats", f"calibration error  {figures['calibration_error']:7.4f}"]
    if "agreement" in figures:
        lines += [f"teacher's accuracy {figures['teacher_accuracy']:7.2%}", f"agreement with it  {figures['agreement']:7.2%}"]
    width = max(map(len, figures["per_class"]))
    lines += ["", "accuracy by class"]
    lines += [f"  {name.ljust(width)}  {'no images' if a is None else f'{a:7.2%}'}" for name, a in figures["per_class"].items()]
    if "confusion" in figures:
        counts = np.array(figures["confusion"])
        pairs = metrics.most_confused(list(figures["per_class"]), counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
        lines += ["", "most often taken for another", *(f"  {pair}" for pair in pairs)] if pairs else []
    if "maps" not in figures:
        return "\n".join(lines)
    maps = figures["maps"]
    if "cosine" in maps:
        lines += ["", f"maps of {maps['count']:,} images, with the teacher's     of the same image    of another"]
        for name in SIMILARITIES:
            mean, error, control = (maps[name][key] for key in ("mean", "standard_error", "control"))
            lines.append(f"  {name.replace('_', ' ').ljust(40)}{mean:6.3f} +- {error:.3f}     {control:6.3f}")
    lines += ["", "area under the probability of the label   deletion           insertion"]
    for name in ("student", "teacher", "random"):
        if name in maps:
            cells = (f"{maps[name][kind]['area']:6.3f} +- {maps[name][kind]['standard_error']:.3f}" for kind in ("deletion", "insertion"))
            lines.append(f"  {f'by the map: {name}'.ljust(40)}{'    '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    config = parse(EvaluateConfig, "igkd evaluate")
    if config.out is not None:
        check_writable(Path(config.out))
    row = evaluate_images(config)
    if config.out is not None:
        write_json(Path(config.out), row)
    print(printable(table(row["evaluation"])))


if __name__ == "__main__":
    run_cli(main)
