"""Compute the attribution store: python -m jobs.precompute --images SRC --teacher DIR --store URI"""

import gc
import logging
import time
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from igkd import precompute, store
from igkd.config import PrecomputeConfig, parse
from igkd.files import absolute
from igkd.images import ImageSource, open_images
from igkd.models import ImageClassifier
from igkd.teachers import open_teacher
from jobs.runtime import run_job, start_ray, user_error

# Attribution takes the processors, reading and writing the rest of them: an actor pool that holds every processor would starve the
# reads that feed it and wait for ever. So a node of one processor fits one of each.
ATTRIBUTE_CPUS, READ_CPUS = 0.75, 0.2


class Read:
    """Stage 1, a task: the images of one part."""

    def __init__(self, source: ImageSource, plan: store.Plan) -> None:
        self.source, self.plan = source, plan

    def __call__(self, parts: Any) -> Any:
        selection = precompute.Selection(np.asarray(parts["ids"][0]), np.asarray(parts["validation"][0]))
        rows = precompute.read_rows(self.source, self.plan, selection)
        return rows | {"part": np.full(len(selection.ids), parts["part"][0])}


class Attribute:
    """Stage 2, an actor: the teacher, loaded once, on a GPU where there is one."""

    def __init__(self, model: ray.ObjectRef[ImageClassifier], plan: store.Plan) -> None:
        self.plan = plan
        self.model = ray.get(model).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.attribute = precompute.plan_attributor(self.model, plan)

    def __call__(self, rows: Any) -> Any:
        return precompute.attribute_rows(self.model, self.attribute, self.plan, rows)


class Write:
    """Stage 3, a task: one Parquet file."""

    def __init__(self, uri: str, plan: store.Plan) -> None:
        self.uri, self.plan = uri, plan

    def __call__(self, rows: Any) -> Any:
        part = int(rows["part"][0])
        expected = min(self.plan.rows_per_file, self.plan.rows - part * self.plan.rows_per_file)
        return {k: [v] for k, v in precompute.write_rows(self.uri, self.plan, part, expected, rows).items()}


def pipeline(
    source: ImageSource, model: ImageClassifier, plan: store.Plan, selection: precompute.Selection, uri: str, parts: list[int]
) -> Any:
    """The Ray Dataset that computes and writes parts; one block is one part all the way, one row comes out for each."""
    items = []
    for part in parts:
        chosen = selection.part(plan, part)
        items.append({"part": part, "ids": chosen.ids, "validation": chosen.validation})
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    actors = max(1, gpus or int(resources.get("CPU", 1)))
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, len(parts)))
    return (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(Read(source, plan).__call__, batch_size=1, batch_format="numpy", num_cpus=READ_CPUS)
        .map_batches(
            Attribute,
            fn_constructor_args=(ray.put(model), plan),
            batch_size=None,
            batch_format="numpy",
            compute=pool,
            num_cpus=ATTRIBUTE_CPUS,
            num_gpus=1 if gpus else 0,
        )
        .map_batches(Write(uri, plan).__call__, batch_size=None, batch_format="numpy", num_cpus=READ_CPUS)
    )


def compute_parts(
    source: ImageSource, model: ImageClassifier, plan: store.Plan, selection: precompute.Selection, uri: str, parts: list[int]
) -> None:
    """Compute and write parts on the cluster, with a line of progress after each."""
    start_ray()
    context = ray.data.DataContext.get_current()
    # Its bars need a terminal and count blocks; the lines below count images and work in a log, too.
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []
    context.raise_original_map_exception = True  # so that a UserError stays one
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    begin, done, asked = time.monotonic(), 0, sum(len(selection.part(plan, part).ids) for part in parts)
    print(f"precompute: {asked} images, {plan.steps} steps, {len(parts)} parts", flush=True)
    failure = None
    try:
        for row in pipeline(source, model, plan, selection, uri, parts).iter_rows():
            done += row["rows"] + row["skipped"]
            rate = done / (time.monotonic() - begin)
            left = f"{(asked - done) / rate / 60:.0f} min left" if done < asked else "done"
            print(f"precompute: {done}/{asked} images, {rate:.1f} images/s, {left}", flush=True)
    except Exception as error:
        failure = user_error(error)
        if failure is None:
            raise
    if failure is not None:
        gc.collect()  # the executor is in a reference cycle and would keep its actors and their processors
        raise failure


def precompute_store(config: PrecomputeConfig) -> dict[str, Any]:
    """Compute a store, or what is missing of it; gives its manifest."""
    source = open_images(config.images)
    model, card = open_teacher(config.teacher)
    start_ray()
    plan, selection = precompute.make_plan(config, source, model, card["sha256"], gpu=bool(ray.cluster_resources().get("GPU")))
    uri = absolute(config.store)
    todo = store.start(uri, plan)
    if len(todo) < plan.parts:
        print(f"{config.store}: {plan.parts - len(todo)} of {plan.parts} parts are there already", flush=True)
    if todo:
        compute_parts(source, model, plan, selection, uri, todo)
    elif store.is_finished(uri):
        return store.Store.open(uri).manifest
    manifest = store.finish(uri, plan)
    for skipped in manifest["skipped"]:
        print(f"precompute: left out image {skipped['image_id']} ({skipped['name']}): it {skipped['reason']}", flush=True)
    print(f"precompute: {manifest['rows']} rows, {len(manifest['skipped'])} image(s) left out, in {config.store}", flush=True)
    return manifest


def main() -> None:
    precompute_store(parse(PrecomputeConfig, "jobs.precompute"))


if __name__ == "__main__":
    run_job(main)
