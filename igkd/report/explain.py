"""Draw attribution maps of networks: igkd explain --checkpoint DIR --images SRC --out page.html

The HTML page has maps and answers of teacher and student side by side, for some images of a source or for any picture file. If an image's
class is known, both maps explain it; if not, each network's map explains its own answer.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from igkd.base import provenance
from igkd.base.errors import UserError, printable, run_cli
from igkd.base.random_draws import stratified_choice
from igkd.base.storage import absolute, check_writable, write_bytes
from igkd.config.command_line import parse
from igkd.config.explain import ExplainConfig
from igkd.evaluation.evaluate import OWN_CLASSES
from igkd.evaluation.map_samples import Chosen, Looks, likeness, look, read
from igkd.images.class_names import distinct, named
from igkd.images.open import loose_pictures, open_images, tell
from igkd.images.source import ImageSource
from igkd.networks.network import parameter_count
from igkd.networks.open import open_teacher
from igkd.networks.renumbered import class_numbers
from igkd.report import html
from igkd.report.own_teacher import own_teacher

KINDS = ("cifar10", "shapes", "parquet", "folder", "hf")
LONGEST = 224
"""Longest side of a picture on the page, in pixels; larger ones are shrunk."""


def open_any(text: str) -> ImageSource:
    """Open --images: a source of `open_images`, or a path to pictures without classes, which get the label -1.

    Raises:
        UserError: there is no such source or path.
    """
    if text.partition(":")[0] in KINDS:
        return open_images(text)
    path = Path(absolute(text))
    if not path.exists():
        raise UserError(
            f"'{text}' names no images: there is no such file or directory, and it is not cifar10, shapes, parquet:URI, folder:PATH or "
            "hf:OWNER/NAME"
        )
    return loose_pictures(path)


def choose(labels: NDArray[np.int64], ids: Sequence[int] | None, limit: int, source: str) -> NDArray[np.int64]:
    """The ids of the images to draw, int64 (N,), in the user's order.

    Args:
        labels: int64, the labels of all images.
        source: the source's name in messages.

    Raises:
        UserError: there is no image with such an id.
    """
    if ids is None:
        return np.flatnonzero(stratified_choice(labels, min(limit, len(labels)), 0, "limit"))
    wrong = [i for i in ids if not 0 <= i < len(labels)]
    if wrong:
        raise UserError(f"{source} has no image {wrong[0]}: --ids go from 0 to {len(labels) - 1}")
    return np.array(ids, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The content of the page."""

    title: str
    source: str
    """Description of the images."""
    classes: list[str]
    chosen: Chosen
    looks: dict[str, Looks]
    """Logits and maps by network: "teacher" and "student", or only "network"."""
    networks: dict[str, dict[str, Any]]
    """Path, parameters and sha256 by network."""
    row: dict[str, Any]
    """Provenance: how the page was made."""

    @property
    def labelled(self) -> bool:
        return bool((self.chosen.samples.labels >= 0).all())

    @property
    def likeness(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """The result of `map_samples.likeness`; empty without a teacher."""
        return likeness(self.looks["student"], self.looks["teacher"]) if "teacher" in self.looks else {}

    def right(self, name: str) -> int:
        """Number of images that a network classifies correctly."""
        return int((self.looks[name].logits.argmax(1) == self.chosen.samples.labels).sum())

    @property
    def agreement(self) -> int:
        """Number of images to which both networks give the same answer."""
        answers = [looks.logits.argmax(1) for looks in self.looks.values()]
        return int((answers[0] == answers[-1]).sum())


def explain(config: ExplainConfig) -> Explanation:
    """Open networks and images and compute their maps; writes nothing.

    Raises:
        UserError: a checkpoint or the images are missing or damaged, or do not fit each other.
    """
    started, device = provenance.now(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, card = open_teacher(config.checkpoint)
    source = open_any(config.images)
    tell(source)
    teacher = own_teacher(config, card, model)
    found = (
        {"network": (model, card, config.checkpoint)}
        if teacher is None
        else {"teacher": teacher, "student": (model, card, config.checkpoint)}
    )
    known, numbers = [network.spec.classes for network, _, _ in found.values()], None
    if source.classes:
        numbers = class_numbers(model, f"the checkpoint {config.checkpoint}", str(source), source.classes, OWN_CLASSES)
        known.append(tuple(source.classes[i] for i in np.argsort(numbers)))
    labels = source.labels(config.split) if numbers is None else source.checked_labels(config.split)
    ids = choose(labels, config.ids, config.limit, str(source))
    chosen = read(source, config.split, ids, numbers, model.spec, config.bad_images)
    for sentence in chosen.left_out:
        print(printable(sentence), file=sys.stderr, flush=True)
    baseline = next(iter(found.values()))[0].spec.mean  # the teacher's mean colour, or that of the network alone
    looks = {}
    for name, (network, _, where) in found.items():
        placed = network.to(device).to(memory_format=torch.channels_last)
        looks[name] = look(placed, chosen.samples, config.steps, f"the {name} {where}", baseline)
    student, of_split = Path(config.checkpoint).resolve().name, "" if numbers is None else f" of the {config.split} split"
    return Explanation(
        title=f"What {student} looks at" if teacher is None else f"What {student} and its teacher look at",
        source=f"{config.images}, {len(chosen.samples):,} of {len(labels):,} image(s){of_split}",
        classes=distinct(named(*known)),
        chosen=chosen,
        looks=looks,
        networks={
            name: {"path": where, "parameters": parameter_count(network), "sha256": card["sha256"]}
            for name, (network, card, where) in found.items()
        },
        row={"config": dataclasses.asdict(config), "provenance": provenance.provenance(provenance.command(), 0, started)},
    )


def cards(found: Explanation) -> list[dict[str, Any]]:
    """The page's content for each image, in order.

    Returns:
        id, name and label (None where they are not known), image uint8 (H, W, 3), scaled (the (height, width) it was scaled from, or None),
        looks (by network: map float32 (H, W), target, and answers as (class, probability)), likeness (by measure: own and control).
    """
    samples, classes, like = found.chosen.samples, found.classes, found.likeness
    rows = []
    for i, (number, label) in enumerate(zip(samples.ids.tolist(), samples.labels.tolist(), strict=True)):
        looks = {
            name: {
                "map": looks.maps[i],
                "target": classes[int(looks.targets[i])],
                "answers": [(classes[c], probability) for c, probability in looks.answers(i)],
            }
            for name, looks in found.looks.items()
        }
        rows.append(
            {
                "id": number,
                "name": found.chosen.names[i],
                "label": None if label < 0 else classes[label],
                "image": samples.pixels[i].permute(1, 2, 0).numpy(),
                "scaled": found.chosen.scaled_from[i],
                "looks": looks,
                "likeness": {name: (float(own[i]), float(control[i])) for name, (own, control) in like.items()},
            }
        )
    return rows


def summary(found: Explanation) -> list[tuple[str, float, float, int]]:
    """(measure, mean, mean of the control, number of images) of the maps' similarity; means of nothing are NaN."""
    return [(name, mean(own), mean(control), int(np.isfinite(own).sum())) for name, (own, control) in found.likeness.items()]


def mean(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def render(found: Explanation) -> str:
    """The page as HTML that needs no other file."""
    made = html.provenance([found.row], [])
    shas = {f"{name}’s sha256": network["sha256"][:16] for name, network in found.networks.items()}
    return (
        html.environment()
        .get_template("explain.html.j2")
        .render(
            report=found,
            cards=cards(found),
            summary=summary(found),
            count=len(found.chosen.samples),
            shape=found.chosen.samples.shape,
            steps=found.row["config"]["steps"],
            longest=LONGEST,
            commands=made["commands"],
            facts=shas | made["facts"],
        )
    )


def table(found: Explanation) -> str:
    """The main figures as text for a terminal."""
    count = len(found.chosen.samples)
    lines = [f"{name:17} right about {found.right(name)} of {count}" for name in found.looks if found.labelled]
    lines += [f"same answer       to {found.agreement} of {count}"] * ("teacher" in found.looks)
    lines += [
        f"{name:17} {own:.3f}, with another image's map {control:.3f}" for name, own, control, _ in summary(found) if math.isfinite(control)
    ]
    return "\n".join(lines)


def write_page(config: ExplainConfig) -> tuple[Explanation, int]:
    """Compute and write the page; gives its content and its size in bytes.

    Raises:
        UserError: as for `explain`; or the page cannot be written, which is checked before anything is computed.
    """
    out = Path(config.out)
    check_writable(out)
    found = explain(config)
    data = render(found).encode(errors="replace")  # names of files may contain bytes that are not valid text
    write_bytes(out, data)
    return found, len(data)


def main() -> None:
    config = parse(ExplainConfig, "igkd explain")
    found, written = write_page(config)
    print("\n".join(filter(None, [table(found), f"written           {config.out}, {written / 1e6:.2f} MB"])))


if __name__ == "__main__":
    run_cli(main)
