"""Which settings and data identify a run, and which choices are made once, when a run starts."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from igkd.base.choices import LOGIT_PARTS, parts_of
from igkd.base.errors import UserError
from igkd.base.run_directory import read_object
from igkd.config.distill import DistillConfig
from igkd.config.teacher import TeacherConfig
from igkd.images.open import open_images
from igkd.networks.families import student_name
from igkd.networks.initial import init_hash
from igkd.store import Store

BYTES_PER_PIXEL = 8
"""Bytes for each pixel of an image in memory: three for colour, four for its map, one spare."""


def decided(config: DistillConfig, store: Store) -> DistillConfig:
    """The settings with `auto` values replaced: by those of the run's config.json if the run has started, perhaps on another machine; else
    by what this store and machine have.

    Raises:
        UserError: the run's config.json is damaged, or a share of the rows cannot be streamed.
    """
    config = replace(config, student=student_name(config.student, store.plan.teacher_network, store.plan.image_shape))
    earlier = Path(config.out) / "config.json"
    begun = read_object(earlier) if earlier.exists() else {}
    before = begun.get("logits")
    config = with_logits(config, before == "views" if before in ("image", "views") else store.views is not None)
    if config.ingest == "auto" and begun.get("ingest") in ("resident", "stream"):
        return replace(config, ingest=begun["ingest"])
    return replace(config, ingest=ingest_of(config, store))


def with_logits(config: DistillConfig, views: bool) -> DistillConfig:
    """The settings with the logits decided, if they are not yet.

    Args:
        views: whether the store has views, or the run began with them.
    """
    if config.logits in ("image", "views"):
        return config
    views = views and not LOGIT_PARTS.isdisjoint(parts_of(config.arm)) and not config.live
    return replace(config, logits="views" if views else "image", live=config.live or (config.logits == "crop" and not views))


def fingerprints(config: DistillConfig) -> dict[str, str]:
    """The values that identify a student's run besides its settings. Test images are not among them: nothing is learned from them.

    Raises:
        UserError: the store or the weights to start from do not exist.
    """
    store = Store.open(config.store)
    found = {"store_fingerprint": store.fingerprint()}
    if config.init is not None:
        found["init_sha256"] = init_hash(config.init)
    views = store.views_fingerprint()
    return found if views is None else found | {"views_fingerprint": views}


def judged_otherwise(rows: Iterable[tuple[Mapping[str, Any], TeacherConfig | DistillConfig]]) -> list[str]:
    """A sentence for each finished run that was evaluated with other test images, or with another --maps, than its settings name now.

    Args:
        rows: result row and present settings of each run.
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
            except UserError:  # the images existed when the run was evaluated
                fingerprints[images] = None
        asked, judged = (fingerprints[images], maps), (row.get("test", {}).get("images_fingerprint"), row.get("config", {}).get("maps", 0))
        if asked[0] is not None and asked != judged:
            found.append(
                f"{config.out} was judged by other test images or another --maps; "
                f"`igkd evaluate --checkpoint {config.out} --images {images}` judges it by these"
            )
    return found


def identity(config: DistillConfig, found: dict[str, str]) -> dict[str, str]:
    """The entries of `fingerprints` that identify this run: the views' only if it uses views, since views may be added to a store later."""
    return {name: value for name, value in found.items() if name != "views_fingerprint" or config.which_logits == "views"}


def ingest_of(config: DistillConfig, store: Store) -> Literal["resident", "stream"]:
    """How training images are read: as the settings say; with `auto`, streamed if all workers' copies would fill half of the memory."""
    if config.share < 1 and config.ingest == "stream":
        raise UserError("--share below 1 needs the rows in memory: choose --ingest resident")
    if config.ingest != "auto":
        return config.ingest
    height, width = store.plan.image_shape
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows: int = store.manifest["rows"]
    views = store.views if config.which_logits == "views" else None
    each = height * width * BYTES_PER_PIXEL + (0 if views is None else views.bytes_per_image)
    return "stream" if rows * each * config.workers > memory / 2 else "resident"
