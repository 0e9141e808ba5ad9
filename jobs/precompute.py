"""Compute the attribution store: python -m jobs.precompute --images SRC --teacher DIR --store URI"""

import dataclasses
import functools
import gc
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import ray
import ray.data

from igkd import store
from igkd.base.errors import UserError, printable
from igkd.base.progress import Progress
from igkd.base.storage import absolute
from igkd.config.command_line import parse
from igkd.config.precompute import PrecomputeConfig
from igkd.images.open import open_images, tell
from igkd.images.source import ImageSource
from igkd.networks.network import Classifier
from igkd.networks.open import open_teacher
from igkd.networks.renumbered import for_pictures
from igkd.store import forwards, views
from igkd.store.compute import Rows, Selection, make_plan
from jobs.backend.ray_insides import map_blocks
from jobs.backend.runtime import READ_CPUS, begin_ray, run_job, start_ray
from jobs.backend.sentences import user_error
from jobs.backend.stages import ALL_GPUS, Attribute, Check, Read, Views, Work, Write, parts_dataset
from jobs.backend.start import awaited
from jobs.backend.waiting import say_if_waiting

PARTS_PER_CHECK = 16
# Ray Data keeps some 50 KB of the driver's memory for every block of a data set until the data set is done; so a store is computed in
# waves, a data set each.
PARTS_AT_ONCE = 1000
Pipeline = Callable[[list[int]], ray.data.Dataset]
"""Makes the Ray Dataset that computes and writes the parts with these numbers."""
Compute = Callable[[Work, list[int], store.Lease], dict[int, store.Entry]]


def has_gpu() -> bool:
    """Whether the cluster has GPUs."""
    return bool(ray.cluster_resources().get("GPU"))


def heavy_task() -> dict[str, Any]:
    """Ray's arguments for a task in which the teacher computes: it takes a GPU if the cluster has GPUs, else a processor."""
    # By default Ray ends a process after a single task on a GPU; the teacher would be loaded anew for every part.
    return {"num_cpus": 0, "num_gpus": 1, "max_calls": 0, "runtime_env": ALL_GPUS} if has_gpu() else {"num_cpus": 1}


def compute_pipeline(
    source: ray.ObjectRef[ImageSource], model: ray.ObjectRef[Classifier], work: Work, parts: list[int], stage: type[Attribute]
) -> ray.data.Dataset:
    """The Ray Dataset that computes and writes parts.

    Without GPUs all stages ask for one processor, and Ray Data fuses stages that ask for the same: a part is one task, from reading its
    images to writing its file. Unfused stages would each have processors of their own, and of two processors only one would attribute.
    With GPUs, the processors read and write for the tasks on GPUs.
    """
    light: dict[str, Any] = {"num_cpus": READ_CPUS if has_gpu() else 1}
    read = map_blocks(parts_dataset(parts), Read(source, work).__call__, **light)
    attributed = map_blocks(read, stage(model, work).attributed, **heavy_task())
    return map_blocks(attributed, Write(work).__call__, **light)


def tables_of(dataset: ray.data.Dataset) -> Iterator[Rows]:
    """The blocks of a data set as they are finished. A UserError in a task is raised as itself, after the other tasks were ended."""
    failure = None
    try:
        # Without prefetching, which would hold a block back until the next one is there.
        yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
    except Exception as error:
        failure = user_error(error)
        if failure is None:
            raise
    if failure is not None:
        gc.collect()  # the executor is in a reference cycle and would keep its tasks and their processors
        raise failure


def check_parts(work: Work, parts: list[int], sha256: list[str] | None) -> tuple[dict[int, store.Entry], dict[int, str]]:
    """Check parts by reading them on the cluster; gives the manifest entries of the sound ones, and what is wrong with the others."""
    entries, damage = {}, {}
    if parts:
        checked = map_blocks(parts_dataset(parts, PARTS_PER_CHECK), Check(work, sha256).__call__, num_cpus=READ_CPUS)
        for table in tables_of(checked):
            for part, entry, wrong in zip(table["part"].tolist(), table["entry"], table["damage"], strict=True):
                if wrong:
                    damage[part] = wrong
                else:
                    entries[part] = json.loads(entry)
    return entries, damage


def compute_parts(pipeline: Pipeline, plan: store.Layer, parts: list[int], lease: store.Lease, what: str) -> dict[int, store.Entry]:
    """Compute and write parts on the cluster, showing progress; gives their entries for the manifest.

    Args:
        pipeline: each block of its data set comes from `stages.finished`.
        what: a prefix of the lines, such as "views of ".
    """
    done, entries = 0, {}
    with Progress(f"precompute: {what}", rows_in(plan, parts)) as progress:
        for table in tables_of_waves(pipeline, parts):
            lease.check()
            entry: store.Entry = json.loads(table["entry"][0])
            entries[int(table["part"][0])] = entry
            done += entry["rows"] + len(entry["skipped"])
            progress(done)
    return entries


def tables_of_waves(pipeline: Pipeline, parts: list[int]) -> Iterator[Rows]:
    """The blocks of all parts as they come, computed in waves of `PARTS_AT_ONCE`.

    A wave begins as soon as the one before leaves processors idle: when no more of its parts are left than run at once.
    """
    waves = [parts[start : start + PARTS_AT_ONCE] for start in range(0, len(parts), PARTS_AT_ONCE)]
    at_once = int(ray.cluster_resources().get("GPU" if has_gpu() else "CPU", 1))
    starter = ThreadPoolExecutor(1)
    current = tables_of(pipeline(waves[0]))
    for wave, following in zip(waves, [*waves[1:], None], strict=True):
        left, begun = len(wave), None
        for table in current:
            yield table
            left -= 1
            if following is not None and begun is None and left <= at_once:
                tables = tables_of(pipeline(following))
                begun = starter.submit(next, tables)  # a data set begins when it is asked for its first block
        if begun is not None:
            current = chain([awaited(begun)], tables)


def rows_in(plan: store.Layer, parts: Iterable[int]) -> int:
    """Number of images of these parts."""
    return sum(min(plan.rows_per_file, plan.rows - part * plan.rows_per_file) for part in parts)


def precompute_store(config: PrecomputeConfig) -> dict[str, Any]:
    """Compute what is missing of a store and its views; gives the store's manifest."""
    source = open_images(config.images)
    tell(source)
    begin_ray()
    model, card = open_teacher(config.teacher)
    model, restriction = for_pictures(
        model, f"the teacher {config.teacher}", config.images, source.classes, "train a teacher on these images", config.class_map
    )
    if restriction is not None:
        print(printable(f"precompute: {restriction}"), flush=True)
    start_ray()
    plan, selection = make_plan(
        config,
        source,
        model,
        card["sha256"],
        has_gpu(),
        store.begun_with(absolute(config.store)),
        say=lambda line: print(printable(f"precompute: {line}"), flush=True),
    )
    asked = views_asked_for(config, plan)
    manifest = fill_store(config, source, model, plan, selection)
    if asked is not None:
        add_views(config, model, asked, selection)
    return manifest


def views_asked_for(config: PrecomputeConfig, plan: store.Plan) -> store.ViewsPlan | None:
    """The plan of the views that a store is to have; None for none. Its engine is not chosen yet, unless the views were begun before.

    Raises:
        UserError: such views are impossible, or the disk has no room for them. This is known before hours are spent on the maps.
    """
    uri = absolute(config.store)
    begun = store.views_plan_of(uri)
    if config.views == "none":
        return begun if config.repair else None
    engine = "torch" if begun is None else begun.engine
    asked = views.make_views_plan(config.views, config.padding, plan, engine, config.crop, config.top)
    if begun is None:
        forwards.check_precision(config.views_precision, has_gpu())
        views.check_space(uri, asked)
    else:
        forwards.check_begun(config.views_precision, begun.engine)
    return asked


def add_views(config: PrecomputeConfig, model: Classifier, asked: store.ViewsPlan, selection: Selection) -> dict[str, Any]:
    """Complete the views of a finished store, whatever state they are in; gives their manifest."""
    uri = absolute(config.store)
    opened = store.Store.open(uri)
    if store.views_plan_of(uri) is None:
        few = range(min(opened.plan.parts, -(-forwards.COMPARED // opened.plan.rows_per_file)))
        pixels = opened.samples(few)[0].pixels
        engine = forwards.choose_forwards(
            model, pixels, has_gpu(), config.views_precision, say=lambda line: print(f"precompute: views: {line}", flush=True)
        )
        asked = dataclasses.replace(asked, engine=engine)

    def compute(work: Work, parts: list[int], lease: store.Lease) -> dict[int, store.Entry]:
        print(f"precompute: logits of {asked.crops} crops of each image by {asked.engine}, {len(parts)} parts", flush=True)
        stage = Views(ray.put(model), work, ray.put(opened)).__call__
        return compute_parts(lambda wave: map_blocks(parts_dataset(wave), stage, **heavy_task()), asked, parts, lease, "views of ")

    manifest, computed = fill_layer(config, asked, selection, compute)
    if computed:
        print(f"precompute: the teacher's logits of {asked.crops} crops of each of {manifest['rows']} rows, in {config.store}", flush=True)
    return manifest


def fill_store(
    config: PrecomputeConfig,
    source: ImageSource,
    model: Classifier,
    plan: store.Plan,
    selection: Selection,
    stage: type[Attribute] = Attribute,
) -> dict[str, Any]:
    """Complete a store, whatever state it is in; gives its manifest.

    Args:
        stage: computes the rows; `bench.scale` has one that costs nothing.

    Raises:
        UserError: a part of an unfinished store is damaged and `config.repair` is not set, or an image cannot be used.
    """

    def compute(work: Work, parts: list[int], lease: store.Lease) -> dict[int, store.Entry]:
        print(f"precompute: {rows_in(plan, parts)} images, {plan.path}, {len(parts)} parts", flush=True)
        say_if_waiting({"GPU": 1} if has_gpu() else {"CPU": 1})
        pipeline = functools.partial(compute_pipeline, ray.put(source), ray.put(model), work, stage=stage)
        return compute_parts(lambda wave: pipeline(parts=wave), plan, parts, lease, "")

    manifest, computed = fill_layer(config, plan, selection, compute)
    if not computed:
        return manifest
    for skipped in manifest["skipped"]:
        print(printable(f"precompute: left out image {skipped['image_id']} ({skipped['name']}): it {skipped['reason']}"), flush=True)
    if zero := store.zero_maps(manifest):
        print(f"precompute: {zero}", flush=True)
    print(f"precompute: {manifest['rows']} rows, {len(manifest['skipped'])} image(s) left out, in {config.store}", flush=True)
    return manifest


def fill_layer(config: PrecomputeConfig, plan: store.Layer, selection: Selection, compute: Compute) -> tuple[dict[str, Any], bool]:
    """Complete the files of a store or of its views, whatever state they are in.

    Args:
        compute: computes and writes parts, and gives their entries.

    Returns:
        their manifest, and whether anything was left to do.

    Raises:
        UserError: a part that is there is damaged and `config.repair` is not set.
    """
    uri = absolute(config.store)
    manifest = store.sound_manifest(uri, plan)
    if manifest is not None and not config.repair and not store.start(uri, plan):
        what = "is" if isinstance(plan, store.Plan) else "has its views and is"
        print(f"precompute: {config.store} {what} already finished: {manifest['rows']} rows; igkd.store verify checks them", flush=True)
        return manifest, False
    with store.hold(uri) as lease:
        todo = store.start(uri, plan)
        store.remove_unfinished_files(uri)
        work = Work(uri, plan, ray.put(selection))
        missing = set(todo)
        kept = [part for part in range(plan.parts) if part not in missing]
        entries, damage = check_parts(work, kept, [file["sha256"] for file in manifest["files"]] if manifest else None)
        for part in sorted(damage):
            print(printable(f"precompute: {damage[part]}"), flush=True)
        if damage and not config.repair:
            raise UserError(f"{damage[min(damage)]}; the same command with --repair computes it anew ({len(damage)} part(s) are damaged)")
        todo = sorted([*todo, *damage])
        if kept:
            print(f"precompute: kept {rows_in(plan, entries):,} of {plan.rows:,} rows ({len(entries)} of {plan.parts} parts)", flush=True)
        if manifest is not None and not todo:
            return manifest, False
        store.discard(uri, plan, sorted(damage))
        if todo:
            entries |= compute(work, todo, lease)
        return store.finish(uri, plan, entries.values()), True


def main() -> None:
    precompute_store(parse(PrecomputeConfig, "python -m jobs.precompute"))


if __name__ == "__main__":
    run_job(main)
