"""Compute the attribution store: python -m jobs.precompute --images SRC --teacher DIR --store URI"""

import gc
import json
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import ray
import ray.data

from igkd import precompute, store
from igkd.config import PrecomputeConfig, parse
from igkd.errors import UserError
from igkd.files import absolute
from igkd.images import ImageSource, open_images
from igkd.models import ImageClassifier
from igkd.teachers import open_teacher
from jobs.runtime import READ_CPUS, run_job, start_ray, user_error
from jobs.stages import ALL_GPUS, Attribute, Check, Read, Work, Write

PARTS_PER_CHECK = 16
# Ray Data keeps some 50 KB of the driver's memory for every block of a run until the run is over.
PARTS_AT_ONCE = 1000


def compute_pipeline(
    source: ray.ObjectRef[ImageSource], model: ray.ObjectRef[ImageClassifier], work: Work, parts: list[int], stage: type[Attribute]
) -> Any:
    """The Ray Dataset that computes and writes parts; one row is one part all the way.

    Without GPUs a part is one task from its images to its file: Ray Data fuses stages that ask for the same. Otherwise it would set
    processors aside for each of them, and on two processors one would attribute. With GPUs all processors read and write for these.
    """
    gpu = bool(ray.cluster_resources().get("GPU"))
    light: dict[str, Any] = {"num_cpus": READ_CPUS if gpu else 1}
    # Unless told, Ray ends a process after a single task on a GPU: the teacher would be loaded anew for every part.
    heavy: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1, "max_calls": 0, "runtime_env": ALL_GPUS} if gpu else light
    return (
        ray.data.from_items(parts, override_num_blocks=len(parts))
        .map(Read(source, work).__call__, **light)
        .map(stage(model, work.plan).__call__, **heavy)
        .map(Write(work).__call__, **light)
    )


def check_pipeline(work: Work, parts: list[int], sha256: list[str] | None) -> Any:
    """The Ray Dataset that reads parts back, some dozens of them in one task."""
    dataset = ray.data.from_items(parts, override_num_blocks=-(-len(parts) // PARTS_PER_CHECK))
    return dataset.map(Check(work, sha256).__call__, num_cpus=READ_CPUS)


def rows_of(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a pipeline as they come; an error of ours in it is raised as itself, and its actors are gone by then."""
    failure = None
    try:
        yield from dataset.iter_rows()
    except Exception as error:
        failure = user_error(error)
        if failure is None:
            raise
    if failure is not None:
        gc.collect()  # the executor is in a reference cycle and would keep its actors and their processors
        raise failure


def check_parts(work: Work, parts: list[int], sha256: list[str] | None) -> tuple[dict[int, store.Entry], dict[int, str]]:
    """Read parts back on the cluster; gives the entries of the sound ones, and what is wrong with the others."""
    entries, damage = {}, {}
    for row in rows_of(check_pipeline(work, parts, sha256)) if parts else ():
        if row["damage"]:
            damage[row["part"]] = row["damage"]
        else:
            entries[row["part"]] = json.loads(row["entry"])
    return entries, damage


def compute_parts(
    source: ImageSource, model: ImageClassifier, work: Work, parts: list[int], stage: type[Attribute], lease: store.Lease
) -> dict[int, store.Entry]:
    """Compute and write parts on the cluster, with a line of progress after each; gives their entries."""
    begin, done, asked = time.monotonic(), 0, rows_in(work.plan, parts)
    print(f"precompute: {asked} images, {work.plan.steps} steps, {len(parts)} parts", flush=True)
    entries, given, network = {}, ray.put(source), ray.put(model)
    waves = (parts[start : start + PARTS_AT_ONCE] for start in range(0, len(parts), PARTS_AT_ONCE))
    for row in chain.from_iterable(rows_of(compute_pipeline(given, network, work, wave, stage)) for wave in waves):
        lease.check()
        entry = entries[row["part"]] = json.loads(row["entry"])
        done += entry["rows"] + len(entry["skipped"])
        rate = done / (time.monotonic() - begin)
        left = f"{(asked - done) / rate / 60:.0f} min left" if done < asked else "done"
        print(f"precompute: {done}/{asked} images, {rate:.1f} images/s, {left}", flush=True)
    return entries


def rows_in(plan: store.Plan, parts: Iterable[int]) -> int:
    """Images asked for of these parts."""
    return sum(min(plan.rows_per_file, plan.rows - part * plan.rows_per_file) for part in parts)


def precompute_store(config: PrecomputeConfig) -> dict[str, Any]:
    """Compute a store, or what is missing of it; gives its manifest."""
    source = open_images(config.images)
    model, card = open_teacher(config.teacher)
    start_ray()
    gpu, begun = bool(ray.cluster_resources().get("GPU")), store.engine_of(absolute(config.store))
    plan, selection = precompute.make_plan(
        config, source, model, card["sha256"], gpu, begun, say=lambda line: print(f"precompute: {line}", flush=True)
    )
    return fill_store(config, source, model, plan, selection)


def fill_store(
    config: PrecomputeConfig,
    source: ImageSource,
    model: ImageClassifier,
    plan: store.Plan,
    selection: precompute.Selection,
    stage: type[Attribute] = Attribute,
) -> dict[str, Any]:
    """Bring a store from whatever state it is in to its plan; gives its manifest.

    Args:
        stage: what computes the rows; `bench.scale` has one that costs nothing.

    Raises:
        UserError: a part of an unfinished store is damaged and `config.repair` is not set, or an image cannot be used.
    """
    uri = absolute(config.store)
    manifest = store.sound_manifest(uri, plan)
    if manifest is not None and not config.repair and not store.start(uri, plan):
        print(f"precompute: {config.store} is already finished: {manifest['rows']} rows; igkd.store verify checks them", flush=True)
        return manifest
    with store.hold(uri) as lease:
        todo = store.start(uri, plan)
        store.remove_unfinished_files(uri)
        work = Work(uri, plan, ray.put(selection))
        missing = set(todo)
        kept = [part for part in range(plan.parts) if part not in missing]
        entries, damage = check_parts(work, kept, [file["sha256"] for file in manifest["files"]] if manifest else None)
        for part in sorted(damage):
            print(f"precompute: {damage[part]}", flush=True)
        if damage and not config.repair:
            raise UserError(f"{damage[min(damage)]}; the same command with --repair computes it anew ({len(damage)} part(s) are damaged)")
        todo = sorted([*todo, *damage])
        if kept:
            print(f"precompute: kept {rows_in(plan, entries):,} of {plan.rows:,} rows ({len(entries)} of {plan.parts} parts)", flush=True)
        if manifest is not None and not todo:
            return manifest
        store.discard(uri, sorted(damage))
        entries |= compute_parts(source, model, work, todo, stage, lease)
        manifest = store.finish(uri, plan, entries.values())
    for skipped in manifest["skipped"]:
        print(f"precompute: left out image {skipped['image_id']} ({skipped['name']}): it {skipped['reason']}", flush=True)
    if zero := store.zero_maps(manifest):
        print(f"precompute: {zero}", flush=True)
    print(f"precompute: {manifest['rows']} rows, {len(manifest['skipped'])} image(s) left out, in {config.store}", flush=True)
    return manifest


def main() -> None:
    precompute_store(parse(PrecomputeConfig, "jobs.precompute"))


if __name__ == "__main__":
    run_job(main)
