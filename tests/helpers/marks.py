"""`jobs.precompute` that says where it does what: each image read and each part attributed leaves a file named after its node.

A program for tests: python -c "from tests.helpers.marks import main; main()" MARKS TEACHER STORE PARTS
"""

import dataclasses
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray

from igkd.base.choices import Split
from igkd.config.precompute import PrecomputeConfig
from igkd.images.open import open_images
from igkd.images.source import ImageSource, Record
from igkd.networks.open import open_teacher
from igkd.store.compute import Rows, make_plan
from jobs.backend.runtime import run_job, start_ray
from jobs.backend.stages import Attribute
from jobs.precompute import fill_store

ROWS_PER_FILE = 3
SECONDS = 1.0
"""For a part, so that there is time for what is to happen meanwhile."""


def mark(place: str, what: str) -> None:
    (Path(place) / f"{what}-{ray.get_runtime_context().get_node_id()}-{os.getpid()}-{uuid.uuid4().hex}").touch()


def marks(place: Path, what: str) -> list[str]:
    """Ids of the nodes that did it, one for each time."""
    return [path.name.split("-")[1] for path in place.glob(f"{what}-*")]


def processes(place: Path, what: str) -> set[str]:
    """That did it."""
    return {path.name.split("-")[2] for path in place.glob(f"{what}-*")}


@dataclasses.dataclass(frozen=True)
class MarkedImages(ImageSource):
    place: str
    images: ImageSource

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.images.classes

    def __str__(self) -> str:
        return str(self.images)

    def labels(self, split: Split) -> NDArray[np.int64]:
        return self.images.labels(split)

    def read(self, split: Split, ids: Sequence[int]) -> Iterator[Record]:
        mark(self.place, "read")
        return self.images.read(split, ids)

    def fingerprint(self, split: Split) -> str:
        return self.images.fingerprint(split)


class MarkedAttribute(Attribute):
    def attributed(self, rows: Rows) -> Rows:
        mark(self.plan.images, "attribute")
        time.sleep(SECONDS)
        return super().attributed(rows)


def main() -> None:
    place, teacher, uri, parts = sys.argv[1:]

    def fill() -> None:
        config = PrecomputeConfig(
            images=f"shapes:train={int(parts) * ROWS_PER_FILE}", teacher=teacher, store=uri, steps=2, engine="captum",
            rows_per_file=ROWS_PER_FILE,
        )  # fmt: skip
        source, (model, card) = open_images(config.images), open_teacher(config.teacher)
        start_ray()
        plan, selection = make_plan(config, source, model, card["sha256"])
        fill_store(config, MarkedImages(place, source), model, dataclasses.replace(plan, images=place), selection, MarkedAttribute)

    run_job(fill)
