"""The stages of `jobs.precompute` on Ray Data. One row of the data set is one part of the store all the way.

Its images travel packed: rows of their own could be bundled with those of other parts or split, as Ray Data sees fit.

A module of its own, not of a program: what is `__main__` Ray sends by value, and a cache cannot go that way.
"""

import dataclasses
import functools
import json
import os
import pickle
from typing import Any

import ray
import torch

from igkd import store
from igkd.attribution import Attributor
from igkd.images.source import ImageSource
from igkd.networks.network import Classifier
from igkd.store import compute, views
from igkd.store.compute import Rows
from jobs.backend.runtime import fetched

Part = dict[str, Any]
"""A row of the data set: `part`, its number, and what is known of it so far."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What all stages know: a small value, however many rows there are."""

    uri: str
    plan: store.Layer
    selection: ray.ObjectRef[compute.Selection]

    def images(self, part: int) -> compute.Selection:
        """The images asked for of a part."""
        chosen: compute.Selection = fetched(self.selection)
        return chosen.part(self.plan, part)


def plan_of(work: Work) -> store.Plan:
    """The plan of a store's own rows."""
    assert isinstance(work.plan, store.Plan)
    return work.plan


class Check:
    """A part that is there already: its entry for the manifest, or what is wrong with it."""

    def __init__(self, work: Work, sha256: list[str] | None) -> None:
        self.work, self.sha256 = work, sha256

    def __call__(self, row: Part) -> Part:
        part, work = row["item"], self.work
        try:
            entry = store.check_part(work.uri, work.plan, part, work.images(part).ids, self.sha256[part] if self.sha256 else None)
        except store.DamagedPart as error:
            return {"part": part, "entry": "", "damage": str(error)}
        return {"part": part, "entry": json.dumps(entry), "damage": ""}


class Views:
    """The teacher's logits of crops of a part's images, which are read from the store and written beside it: one task, one file."""

    def __init__(self, model: ray.ObjectRef[Classifier], work: Work, opened: ray.ObjectRef[store.Store]) -> None:
        self.model, self.work, self.opened = model, work, opened

    def __call__(self, row: Part) -> Part:
        part, work = row["item"], self.work
        assert isinstance(work.plan, store.ViewsPlan)
        opened: store.Store = fetched(self.opened)
        rows = views.views_of_part(ready_to_answer(self.model, work.plan.engine, own_device()), opened, work.plan, part)
        asked = set(work.images(part).ids.tolist())
        skipped = [image for image in opened.manifest["skipped"] if image["image_id"] in asked]
        return {"part": part, "entry": json.dumps(store.write_part(work.uri, work.plan, part, rows, skipped))}


class Read:
    """Stage 1: the images of a part."""

    def __init__(self, source: ray.ObjectRef[ImageSource], work: Work) -> None:
        self.source, self.work = source, work

    def __call__(self, row: Part) -> Part:
        part = row["item"]
        return {"part": part, "rows": pickle.dumps(compute.read_rows(fetched(self.source), plan_of(self.work), self.work.images(part)))}


class Attribute:
    """Stage 2: what the teacher makes of them, on a GPU where there is one.

    A task, not an actor: Ray Data keeps a pool of actors at the size with which it began (2.60, seen with processors and with GPUs), while
    tasks go to every node that joins, and anywhere when one leaves.
    """

    def __init__(self, model: ray.ObjectRef[Classifier], work: Work) -> None:
        self.model, self.plan = model, plan_of(work)

    def __call__(self, row: Part) -> Part:
        return {"part": row["part"], "rows": pickle.dumps(self.attributed(pickle.loads(row["rows"])))}

    def attributed(self, rows: Rows) -> Rows:
        model, attribute = ready(self.model, self.plan, own_device())
        return compute.attribute_rows(model, attribute, self.plan, rows)


class Write:
    """Stage 3: one Parquet file; its entry for the manifest."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, row: Part) -> Part:
        part, work = row["part"], self.work
        entry = compute.write_rows(work.uri, plan_of(work), part, work.images(part).ids, pickle.loads(row["rows"]))
        return {"part": part, "entry": json.dumps(entry)}


@functools.lru_cache(maxsize=1)
def ready(model: ray.ObjectRef[Classifier], plan: store.Plan, device: str) -> tuple[Classifier, Attributor]:
    """The teacher and its attributor, made once in a process, which Ray uses for one task after the other."""
    network = ray.get(model).to(device).eval()
    return network, compute.plan_attributor(network, plan)


@functools.lru_cache(maxsize=1)
def ready_to_answer(model: ray.ObjectRef[Classifier], engine: store.Forwards, device: str) -> views.Answer:
    """The teacher's forward pass, made once in a process."""
    return views.answering(ray.get(model).to(device).eval(), engine)


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
