"""Make a checkpoint of a network that was trained elsewhere: igkd import NETWORK --weights FILE --images SRC --out DIR"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from igkd.base import provenance
from igkd.base.errors import UserError, printable, run_cli
from igkd.base.random_draws import stratified_choice
from igkd.base.storage import check_writable, parse_json
from igkd.config.command_line import parse
from igkd.config.import_network import ImportConfig
from igkd.evaluation.chance import chance_of, figures_near_chance
from igkd.evaluation.evaluate import evaluate, matching_samples
from igkd.images.open import open_images, tell
from igkd.images.source import ImageSource
from igkd.networks import checkpoint
from igkd.networks.class_map import mapped
from igkd.networks.families import architecture, canonical_name, outside
from igkd.networks.module import ALLOWED
from igkd.networks.network import Classifier
from igkd.networks.open import DEFAULT, NONE, Request, classifier, file_classes
from igkd.networks.preparation import Preparation
from igkd.networks.renumbered import restricted

REMEDY = "give --classes in the order of its logits"
MAX_BYTES = 16 << 20
"""Largest file of --classes."""


def class_list(text: str) -> tuple[str, ...]:
    """The class names that --classes gives: lines of a text file, a JSON list, or those of an image source.

    Raises:
        UserError: it is none of these, or names a class twice.
    """
    path = Path(text)
    if not path.is_file():
        try:
            return open_images(text).classes
        except UserError as error:
            raise UserError(f"--classes {text} is no file, and {error}") from None
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"--classes {path} has more than {MAX_BYTES >> 20} MiB; it must have a name on each line")
    try:
        text = path.read_text("utf-8-sig")
        names: Any = parse_json(text.encode()) if path.suffix == ".json" else [one for line in text.splitlines() if (one := line.strip())]
    except ValueError as error:
        raise UserError(f"--classes {path} is neither text in UTF-8 nor JSON: {error}") from None
    if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
        raise UserError(f"--classes {path} must have a name on each line, or be a JSON list of names")
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise UserError(f"--classes {path} names {twice[0]} twice; distinguish the two")
    return tuple(names)


def imported(config: ImportConfig, source: ImageSource) -> Classifier:
    """The network of a configuration, with its weights, classes and preparation; in evaluation mode.

    Raises:
        UserError: as in `networks.open.classifier`; or --classes or --class-map are not what they should be.
    """
    if config.weights == NONE:
        raise UserError("--weights none imports nothing: give a file, or default")
    request = Request(canonical_name(config.network), config.weights)
    found, options = outside(request.network)
    preparation = (Preparation() if found is None else found.preparation(options)).overridden(config.image_size, config.mean, config.std)
    classes = None if config.classes is None else class_list(config.classes)
    if classes is None and config.weights != DEFAULT and file_classes(request) in (None, len(source.classes)):
        classes = source.classes
    model = classifier(request, classes, preparation)
    if config.class_map is None:
        return model
    numbers = mapped(config.class_map, model.spec.classes, source.classes, config.network, config.images)
    model.spec = dataclasses.replace(
        model.spec, classes=renamed(model.spec.classes, dict(zip(numbers.tolist(), source.classes, strict=True)))
    )
    return model


def renamed(classes: tuple[str, ...], given: Mapping[int, str]) -> tuple[str, ...]:
    """A network's classes, some of which have the names that the pictures give them; of the others, those of a name that is taken get their
    number appended.

    Args:
        given: number of a class to its new name.
    """
    taken = Counter(given.values()) + Counter(name for number, name in enumerate(classes) if number not in given)
    return tuple(given.get(number, name if taken[name] == 1 else f"{name} ({number})") for number, name in enumerate(classes))


def check_place(out: Path) -> None:
    """Check, before anything is computed, that a checkpoint can be written to a directory and takes no other job's place.

    Raises:
        UserError: it cannot, or it would.
    """
    check_writable(out / "model.json")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not there:
        return
    made = checkpoint.checkpoint_card(out)["made"] if "model.json" in there else {}
    if there - {"model.json", "model.safetensors"} or not isinstance(made, dict) or made.get("job") != "import":
        raise UserError(
            f"--out {out} holds something else than an imported network, which the import would replace or mix with: name another"
        )


def import_network(config: ImportConfig) -> list[str]:
    """Import a network, judge it and write its checkpoint; gives the lines to print.

    Raises:
        UserError: its weights, classes or images are missing or damaged, or do not fit each other; or --out belongs to a run.
    """
    started, name = provenance.now(), config.network
    check_place(Path(config.out))
    source = open_images(config.images)
    tell(source)
    labels = source.checked_labels("test")
    whole = imported(config, source)
    model, line = restricted(whole, name, config.images, source.classes, REMEDY)
    ids = np.arange(len(labels))
    if config.limit < len(labels):
        ids = np.flatnonzero(stratified_choice(labels, config.limit, 0, "limit"))
    samples, _ = matching_samples(model, name, source, "test", ids, config.bad_images)
    model.to("cuda" if torch.cuda.is_available() else "cpu").to(memory_format=torch.channels_last)
    figures = evaluate(model, samples)
    settings = dataclasses.asdict(config) | {"image_size": whole.spec.image_shape[0]}
    made = {"job": "import", "config": settings, "test": figures, "provenance": provenance.provenance(provenance.command(), 0, started)}
    checkpoint.save(whole.cpu(), Path(config.out), made)
    height, width = whole.spec.image_shape
    lines = [] if line is None else [line]
    lines.append(
        f"{whole.spec.name}, {len(whole.spec.classes)} classes, {height}x{width} pixels, mean {_row(whole.spec.mean)}, "
        f"deviation {_row(whole.spec.std)}: {figures['accuracy']:.1%} of {figures['count']:,} test images right; written to {config.out}"
    )
    classes = len(model.spec.classes)
    if figures_near_chance(figures, classes):
        lines.append(
            f"warning: that is near chance ({chance_of(classes, figures)}): is the order of --classes that of its logits, and are "
            "--mean, --std and --image-size those that it was trained with?"
        )
    family, place = architecture(whole.spec.name)
    if family == "module":
        lines.append(f"commands with --teacher {config.out} run your code only if you say {ALLOWED}={place} before them")
    return lines


def _row(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def main() -> None:
    for line in import_network(parse(ImportConfig, "igkd import")):
        print(printable(line), flush=True)


if __name__ == "__main__":
    run_cli(main)
