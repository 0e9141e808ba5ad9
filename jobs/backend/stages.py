"""The stages of `jobs.precompute` on Ray Data. A block of the data set is a part of the store: an Arrow table with a row for each image.

It is a module of its own because Ray sends what is defined in `__main__`, where a program's module is, by value, and caches cannot be sent.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Sequence

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray

from igkd import store
from igkd.attribution import Attributor, Tell
from igkd.images.source import ImageSource
from igkd.networks.network import Classifier
from igkd.store import compute, forwards, views
from igkd.store.compute import Rows
from jobs.backend.runtime import fetched

SLOW_S = 30.0
"""Seconds after which a part that is not finished says how far it is. Large pictures take a slow processor minutes each part."""


def parts_dataset(parts: Sequence[int], at_once: int = 1) -> ray.data.Dataset:
    """A Ray Dataset of numbers of parts, in the column `item`; each block, and so each task, has `at_once` of them."""
    dataset = ray.data.from_items(list(parts), override_num_blocks=-(-len(parts) // at_once))
    dataset.context.target_max_block_size = None  # of this data set alone: Ray would split a part of more than 128 MiB into several blocks
    return dataset


def finished(part: int, ids: NDArray[np.int64], entry: store.Entry) -> Rows:
    """The block that a task returns for a part that it has written. It has a row for each image, so that Ray's dashboard counts images.

    Args:
        ids: int64 (n,), ids of the part's images.
        entry: the part's entry for the manifest, which goes into the first row.
    """
    entries = np.full(len(ids), "", dtype=object)
    entries[0] = json.dumps(entry)
    return {"image_id": ids, "part": np.full(len(ids), part), "entry": entries}


@dataclasses.dataclass(frozen=True)
class Work:
    """What all stages have in common; small, since Ray sends it with every task."""

    uri: str
    plan: store.Layer
    selection: ray.ObjectRef[compute.Selection]

    def images(self, part: int) -> compute.Selection:
        """The images of a part that are to be computed."""
        chosen: compute.Selection = fetched(self.selection)
        return chosen.part(self.plan, part)


def plan_of(work: Work) -> store.Plan:
    """The work's plan, which is that of the store and not of its views."""
    assert isinstance(work.plan, store.Plan)
    return work.plan


class Check:
    """Checks parts that are in the store already. Each gives a row, with its entry for the manifest or with what is wrong with it."""

    def __init__(self, work: Work, sha256: list[str] | None) -> None:
        self.work, self.sha256 = work, sha256

    def __call__(self, batch: Rows) -> Rows:
        checked = [self.checked(part) for part in batch["item"].tolist()]
        entries, damages = zip(*checked, strict=True)
        return {"part": batch["item"], "entry": np.array(entries, dtype=object), "damage": np.array(damages, dtype=object)}

    def checked(self, part: int) -> tuple[str, str]:
        work = self.work
        try:
            entry = store.check_part(work.uri, work.plan, part, work.images(part).ids, self.sha256[part] if self.sha256 else None)
        except store.DamagedPart as error:
            return "", str(error)
        return json.dumps(entry), ""


class Views:
    """Computes the teacher's logits of crops of a part's images, which it reads from the store, and writes them as a file beside it."""

    def __init__(self, model: ray.ObjectRef[Classifier], work: Work, opened: ray.ObjectRef[store.Store]) -> None:
        self.model, self.work, self.opened = model, work, opened

    def __call__(self, batch: Rows) -> Rows:
        (part,), work = batch["item"].tolist(), self.work
        assert isinstance(work.plan, store.ViewsPlan)
        opened: store.Store = fetched(self.opened)
        rows = views.views_of_part(ready_to_answer(self.model, work.plan.engine, own_device()), opened, work.plan, part)
        ids = work.images(part).ids
        asked = set(ids.tolist())
        skipped = [image for image in opened.manifest["skipped"] if image["image_id"] in asked]
        return finished(part, ids, store.write_part(work.uri, work.plan, part, rows, skipped))


class Read:
    """Stage 1: reads the images of a part. Each is a row, with the part's number in the column `part`."""

    def __init__(self, source: ray.ObjectRef[ImageSource], work: Work) -> None:
        self.source, self.work = source, work

    def __call__(self, batch: Rows) -> Rows:
        (part,) = batch["item"].tolist()
        rows = compute.read_rows(fetched(self.source), plan_of(self.work), self.work.images(part))
        return rows | {"part": np.full(len(rows["image_id"]), part)}


class Attribute:
    """Stage 2: computes the teacher's map, logits and attention of each image, on a GPU if the cluster has GPUs.

    It runs as tasks, not as actors: Ray Data (2.60) never changes the size of a pool of actors, with processors or with GPUs, while tasks
    use every node that joins and move elsewhere when one leaves.
    """

    def __init__(self, model: ray.ObjectRef[Classifier], work: Work) -> None:
        self.model, self.plan = model, plan_of(work)

    def attributed(self, rows: Rows) -> Rows:
        model, attribute = ready(self.model, self.plan, own_device())
        return compute.attribute_rows(model, attribute, self.plan, rows, telling(int(rows["part"][0]), len(rows["part"])))


def telling(part: int, images: int) -> Tell:
    """A function that prints how far a part is, each time that `SLOW_S` have passed: the driver's own lines count finished parts."""
    begin = spoke = time.monotonic()

    def tell(done: int) -> None:
        nonlocal spoke
        if done < images and (now := time.monotonic()) - spoke >= SLOW_S:
            spoke = now
            print(f"precompute: part {part}: {done}/{images} images, {done / (now - begin):.1f} images/s", flush=True)

    return tell


class Write:
    """Stage 3: writes the part as one Parquet file."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, rows: Rows) -> Rows:
        part, work = int(rows["part"][0]), self.work
        ids = work.images(part).ids
        return finished(part, ids, compute.write_rows(work.uri, plan_of(work), part, ids, rows))


@functools.lru_cache(maxsize=1)
def ready(model: ray.ObjectRef[Classifier], plan: store.Plan, device: str) -> tuple[Classifier, Attributor]:
    """The teacher and its attributor, made once in each process; Ray uses a process for one task after the other."""
    network = ray.get(model).to(device).eval()
    return network, compute.plan_attributor(network, plan)


@functools.lru_cache(maxsize=1)
def ready_to_answer(model: ray.ObjectRef[Classifier], engine: store.Forwards, device: str) -> forwards.Answer:
    """The teacher's forward pass, made once in each process."""
    return forwards.answering(ray.get(model).to(device).eval(), engine)


ALL_GPUS = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
"""Runtime environment in which a task sees all GPUs of its node: a process whose CUDA has begun on one of them would not notice that Ray
gave its next task another."""


def own_device() -> str:
    """The GPU that Ray gave this task, as torch names it; or "cpu"."""
    given = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    if not given or not torch.cuda.is_available():
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"cuda:{visible.split(',').index(given[0]) if visible else given[0]}"
