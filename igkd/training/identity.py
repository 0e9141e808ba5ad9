"""Which settings and data make two runs the same run, and what is decided once when a run begins."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from igkd.base.errors import UserError
from igkd.base.run_directory import read_object
from igkd.config.distill import DistillConfig
from igkd.config.teacher import TeacherConfig
from igkd.images.open import open_images
from igkd.networks.families import student_name
from igkd.store import Store

BYTES_PER_PIXEL = 8
"""Of an image in memory: three of colour, four of its map, one to spare."""


def decided(config: DistillConfig, store: Store) -> DistillConfig:
    """The configuration with what it leaves to store and machine decided: as its run began, if it has begun, be it on a machine with
    another memory; else by what store and machine have now.

    Raises:
        UserError: its directory's config.json is damaged, or a share of the rows cannot be streamed.
    """
    config = replace(config, student=student_name(config.student, store.plan.teacher_network, store.plan.image_shape))
    earlier = Path(config.out) / "config.json"
    begun = read_object(earlier) if earlier.exists() else {}
    if config.logits not in ("image", "views"):
        if begun.get("logits") in ("image", "views"):
            views = begun["logits"] == "views"
        else:
            views = "kd" in config.arm.split("+") and not config.live and store.views is not None
        live = config.live or (config.logits == "crop" and not views)
        config = replace(config, logits="views" if views else "image", live=live)
    if config.ingest == "auto" and begun.get("ingest") in ("resident", "stream"):
        return replace(config, ingest=begun["ingest"])
    return replace(config, ingest=ingest_of(config, store))


def fingerprints(config: DistillConfig) -> dict[str, str]:
    """What identifies the runs of students of a store besides their settings. Test images do not: nothing is learned from them.

    Raises:
        UserError: the store is not there.
    """
    store = Store.open(config.store)
    found = {"store_fingerprint": store.fingerprint()}
    views = store.views_fingerprint()
    return found if views is None else found | {"views_fingerprint": views}


def judged_otherwise(rows: Iterable[tuple[Mapping[str, Any], TeacherConfig | DistillConfig]]) -> list[str]:
    """A sentence for each finished run that was judged by other test images, or by maps of another number of them, than is asked for now.

    Args:
        rows: result and configuration asked for, of each.
    """
    fingerprints: dict[str, str | None] = {}
    found = []
    for row, config in rows:
        images, maps = (config.images, 0) if isinstance(config, TeacherConfig) else (config.test_images, config.maps)
        if images is None:
            continue
        if images not in fingerprints:
            try:
                fingerprints[images] = open_images(images).fingerprint("test")
            except UserError:  # they were there when it was judged
                fingerprints[images] = None
        asked, judged = (fingerprints[images], maps), (row.get("test", {}).get("images_fingerprint"), row.get("config", {}).get("maps", 0))
        if asked[0] is not None and asked != judged:
            found.append(
                f"{config.out} was judged by other test images or another --maps; "
                f"`igkd evaluate --checkpoint {config.out} --images {images}` judges it by these"
            )
    return found


def identity(config: DistillConfig, found: dict[str, str]) -> dict[str, str]:
    """Of what `fingerprints` found, what matters to a run: views may be added to a store without making others of those that use none."""
    return {name: value for name, value in found.items() if name != "views_fingerprint" or config.which_logits == "views"}


def ingest_of(config: DistillConfig, store: Store) -> Literal["resident", "stream"]:
    """How training images are read: as asked, else streamed if all rows in memory, once a worker, would take more than half of it."""
    if config.share < 1 and config.ingest == "stream":
        raise UserError("--share below 1 needs the rows in memory: choose --ingest resident")
    if config.ingest != "auto":
        return config.ingest
    height, width = store.plan.image_shape
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows: int = store.manifest["rows"]
    views = store.views if config.which_logits == "views" else None
    each = height * width * BYTES_PER_PIXEL + (0 if views is None else 2 * views.crops * views.classes)
    return "stream" if rows * each * config.workers > memory / 2 else "resident"
