"""Small stores: of random rows, and made as jobs.precompute makes them, without Ray."""

import dataclasses
from typing import Any

import numpy as np
import torch

import jobs  # noqa: F401  # sets what Ray reads when it is imported, by whichever test is the first to do so
from igkd import store
from igkd.config.precompute import PrecomputeConfig
from igkd.images.codec import encode_png, pixel_hash
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.store import Plan, Store, ViewsPlan, compute, forwards, views


def make_store(config: PrecomputeConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What jobs.precompute does, without Ray; gives the manifest. The teacher computes in `dtype`."""
    source, model = open_images(config.images), checkpoint.load(config.teacher).to(dtype)
    plan, selection = compute.make_plan(config, source, model, checkpoint.checkpoint_card(config.teacher)["sha256"])
    attribute = compute.plan_attributor(model, plan)
    missing, entries = store.start(config.store, plan), []
    for part in range(plan.parts):
        chosen = selection.part(plan, part)
        if part in missing:
            rows = compute.attribute_rows(model, attribute, plan, compute.read_rows(source, plan, chosen))
            entries.append(compute.write_rows(config.store, plan, part, chosen.ids, rows))
        else:
            entries.append(store.check_part(config.store, plan, part, chosen.ids))
    return store.finish(config.store, plan, entries)


def add_views(uri: str, teacher: str, asked: str = "all", padding: int = 4, **how: Any) -> ViewsPlan:
    """What jobs.precompute --views does, without Ray; `how` has further arguments of `make_views_plan`."""
    opened, model = Store.open(uri), checkpoint.load(teacher)
    plan = views.make_views_plan(asked, padding, opened.plan, "torch", **how)
    answer, entries = forwards.answering(model, plan.engine), []
    for part in store.start(uri, plan):
        rows = views.views_of_part(answer, opened, plan, part)
        ids = set(range(part * plan.rows_per_file, (part + 1) * plan.rows_per_file))
        skipped = [image for image in opened.manifest["skipped"] if image["image_id"] in ids]
        entries.append(store.write_part(uri, plan, part, rows, skipped))
    store.finish(uri, plan, entries)
    return plan


def tiny_plan(rows: int = 6, rows_per_file: int = 4, shape: tuple[int, int] = (3, 5), **changes: Any) -> Plan:
    plan = Plan(
        images="somewhere",
        images_fingerprint="f",
        split="train",
        classes=("a", "b", "c"),
        image_shape=shape,
        resize=False,
        bad_images="skip",
        teacher="t" * 64,
        teacher_parameters=1000,
        teacher_network="mobilenet",
        steps=5,
        method="ig",
        quadrature="q",
        engine="captum",
        precision="float16",
        attention_layer="features.9",
        attention_shape=(2, 3),
        has_mask=True,
        ids_sha256=store.ids_hash(np.arange(rows)),
        rows=rows,
        rows_per_file=rows_per_file,
    )
    return dataclasses.replace(plan, **changes)


def some_columns(plan: Plan, ids: Any, seed: int = 0) -> dict[str, Any]:
    """Rows of random content, exact in the store's precision."""
    rng, n = np.random.default_rng(seed), len(ids)
    pictures = rng.integers(0, 256, (n, *plan.image_shape, 3), dtype=np.uint8)
    return {
        "image_id": np.array(ids, np.int64),
        "image_sha": [pixel_hash(p) for p in pictures],
        "image": [encode_png(p) for p in pictures],
        "label": rng.integers(0, len(plan.classes), n),
        "validation": rng.random(n) < 0.5,
        "ig": rng.random((n, *plan.image_shape)).astype(plan.precision),
        "ig_delta": rng.normal(size=n).astype(np.float32),
        "logits": rng.normal(size=(n, len(plan.classes))).astype(np.float32),
        "attention": rng.random((n, *plan.attention_shape)).astype(plan.precision),
        "mask": rng.integers(0, 2, (n, *plan.image_shape)).astype(np.uint8),
    }


def write_all(uri: str, plan: Plan, skipped: Any = ()) -> dict[str, Any]:
    """A store of random rows; ids in `skipped` are left out."""
    store.start(uri, plan)
    entries = []
    for part in range(plan.parts):
        ids = ids_of(plan, part).tolist()
        reasons = [{"image_id": i, "name": f"{i}.png", "reason": "is bad"} for i in ids if i in skipped]
        entries.append(store.write_part(uri, plan, part, some_columns(plan, [i for i in ids if i not in skipped], part), reasons))
    return store.finish(uri, plan, entries)


def ids_of(plan: Plan, part: int) -> np.ndarray:
    """The ids of a part of these stores, which hold 0, 1, 2, ..."""
    return np.arange(part * plan.rows_per_file, min(plan.rows, (part + 1) * plan.rows_per_file))


def check_all(uri: str, plan: Plan) -> list[store.Entry]:
    """The entries of all parts, read back."""
    return [store.check_part(uri, plan, part, ids_of(plan, part)) for part in range(plan.parts)]
