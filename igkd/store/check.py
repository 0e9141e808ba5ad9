"""`verify` checks every byte of a finished store, `describe` gives its figures."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from igkd.base.errors import UserError
from igkd.base.storage import filesystem, list_names, parse_json, read_file
from igkd.images.class_names import distinct
from igkd.images.codec import BadImage, decode, pixel_hash
from igkd.store.plan import PLACES, Layer, Plan, ViewsPlan, ids_hash, part_name
from igkd.store.read import Store, count_zero, out_of_range, part_table, read_manifest, skipped_of, to_numpy
from igkd.store.signals import SIGNALS, columns_of

WITHIN = 0.05
"""Largest completeness error that is good, as a share."""
MOST_CLASSES = 20
"""Of more classes, `igkd store describe` prints only a line."""


def verify(uri: str, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Check every byte and every row of a store.

    Args:
        say: called with a line of progress after each part.

    Returns:
        one sentence for each problem; empty if the store is sound.

    Raises:
        UserError: there is no store, it is unfinished, or its manifest is damaged.
    """
    store = Store.open(uri)
    problems = _check_directory(store)
    wrong, found, skipped = _check_parts(uri, store.plan, store.manifest, say)
    problems += wrong + list(_repeated(found))
    if not problems:
        if skipped != store.manifest["skipped"]:
            problems.append("the manifest's list of skipped images is not that of the parts")
        left_out = np.array([s["image_id"] for s in skipped], dtype=np.int64)
        if ids_hash(np.sort(np.concatenate([*found, left_out]))) != store.plan.ids_sha256:
            problems.append("the ids in the store are not the ids that were asked for")
    try:
        if store.views is not None:
            views, manifest = read_manifest(uri, ViewsPlan)
            wrong, theirs, _ = _check_parts(uri, views, manifest, say)
            pairs = zip(theirs, found, strict=False)
            problems += wrong or [
                f"{views.part_name(part)} has other images than {part_name(part)}"
                for part, (ids, own) in enumerate(pairs)
                if not np.array_equal(ids, own)
            ]
    except UserError as error:
        problems.append(str(error))
    return problems


def _check_parts(
    uri: str, plan: Layer, manifest: dict[str, Any], say: Callable[[str], None]
) -> tuple[list[str], list[NDArray[np.int64]], list[dict[str, Any]]]:
    """Read all parts of a layer; gives the problems found, the ids of each part, and the images that were left out."""
    fs, root = filesystem(uri)
    problems: list[str] = []
    found: list[NDArray[np.int64]] = []
    skipped: list[dict[str, Any]] = []
    zero = 0
    for file in manifest["files"]:
        name = file["name"]
        try:
            data = read_file(fs, f"{root}/{name}")
            if len(data) != file["bytes"]:
                raise ValueError(f"was changed: it has {len(data)} bytes instead of {file['bytes']}")
            if hashlib.sha256(data).hexdigest() != file["sha256"]:
                raise ValueError("was changed: its sha256 is not the manifest's")
            table = part_table(data, plan)
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except UserError as error:
            problems.append(str(error))
        except ValueError as error:
            problems.append(f"{name} {error}")
        else:
            if len(table) != file["rows"]:
                problems.append(f"{name} has {len(table)} rows instead of {file['rows']}")
            if isinstance(plan, Plan):
                problems += _check_rows(name, table, plan)
                zero += count_zero(to_numpy(table.column("ig")))
            else:
                problems += _check_views(name, table, plan)
            found.append(to_numpy(table.column("image_id")))
            skipped += skipped_of(table)
            say(f"{name}: {len(table)} rows")
            continue
        found.append(np.empty(0, np.int64))
        say(f"{name}: not usable")
    if isinstance(plan, Plan) and not problems and zero != manifest["zero_maps"]:
        problems.append(f"{zero} maps are all zero, not the manifest's {manifest['zero_maps']}")
    return problems, found, skipped


def _check_directory(store: Store) -> list[str]:
    """Problems with a store's files other than its parts, and with unexpected ones."""
    fs, root = filesystem(store.uri)
    problems = []
    try:
        names = {file["name"] for file in store.manifest["files"]}
        there = sorted(list_names(fs, root))
        if ViewsPlan.plan_name in there:  # the views may be unfinished, without a manifest
            names |= {ViewsPlan.part_name(part) for part in range(store.plan.parts)}
        problems += [f"{name} is not in the manifest" for name in there if name.endswith(".parquet") and name not in names]
        written = parse_json(read_file(fs, f"{root}/plan.json"))
        plan = store.plan.to_json()
        places = {name: plan[name] for name in PLACES}  # which may have moved while the store was computed
        if not isinstance(written, dict) or written | places != plan:
            problems.append("plan.json is not the manifest's plan")
    except FileNotFoundError:
        problems.append("plan.json is missing")
    except UserError as error:
        problems.append(str(error))
    except ValueError as error:
        problems.append(f"plan.json cannot be read: {error}")
    return problems


def _repeated(found: list[NDArray[np.int64]]) -> Iterator[str]:
    """A sentence for each id that is in the store more than once, from the ids of each part."""
    ids = np.concatenate([np.empty(0, np.int64), *found])
    part = np.repeat(np.arange(len(found)), [len(one) for one in found])
    order = np.argsort(ids, kind="stable")
    for again in np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1:
        here, first = part[order[again]], part[order[again - 1]]
        yield f"{part_name(here)}, image {ids[order[again]]}: the same id is in {part_name(first)}"


def _check_rows(name: str, table: pa.Table, plan: Plan) -> Iterator[str]:
    """Problems with the rows of one part."""
    for row in table.select(["image_id", "image", "image_sha", "label"]).to_pylist():
        where = f"{name}, image {row['image_id']}"
        if not 0 <= row["label"] < len(plan.classes):
            yield f"{where}: label {row['label']} is outside the {len(plan.classes)} classes"
        try:
            picture = decode(row["image"], plan.image_shape if plan.resize else None, plan.scaling)
            if pixel_hash(picture) != row["image_sha"]:
                yield f"{where}: the picture does not have the hash in image_sha"
            elif picture.shape[:2] != plan.image_shape:
                yield f"{where}: the picture is {picture.shape[0]}x{picture.shape[1]}, not {plan.image_shape[0]}x{plan.image_shape[1]}"
        except BadImage as error:
            yield f"{where}: the picture {error}"
    yield from _check_finite(name, table, [name for name in columns_of(plan) if SIGNALS[name].of_teacher])


def _check_views(name: str, table: pa.Table, plan: Layer) -> Iterator[str]:
    """Problems with one part of the views."""
    assert isinstance(plan, ViewsPlan)
    yield from _check_finite(name, table, ["views"])
    if plan.top is not None and out_of_range(to_numpy(table.column("view_classes")), plan.classes):
        yield f"{name} names classes that the teacher has not"


def _check_finite(name: str, table: pa.Table, columns: list[str]) -> Iterator[str]:
    """A sentence for each column of a part that has values other than finite numbers."""
    ids = to_numpy(table.column("image_id"))
    for column in columns:
        values = to_numpy(table.column(column)).astype(np.float32)
        finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        yield from (f"{name}, image {i}: {column} is not finite" for i in ids[~finite])


def describe(uri: str) -> dict[str, Any]:
    """Figures of a store: counts, classes, quantiles of the completeness error, sizes. Reads only the manifest and four small columns.

    Raises:
        UserError: there is no store, or it is unfinished or damaged.
    """
    store = Store.open(uri)
    plan = store.plan
    names = ("label", "ig_delta", "validation", "logits")
    parts = [[to_numpy(table.column(name)) for name in names] for table in store.tables(names)]
    parts = [[labels, delta, validation, _lead(logits, labels)] for labels, delta, validation, logits in parts]
    labels, delta, validation, lead = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    delta = np.abs(delta)
    outside = np.flatnonzero((labels < 0) | (labels >= len(plan.classes)))
    if len(outside):
        wrong = f"label {labels[outside[0]]} is outside the {len(plan.classes)} classes"
        raise UserError(f"{uri}: {wrong}; see `igkd store verify {uri}`")
    size = sum(file["bytes"] for file in store.manifest["files"])
    quantiles = (50, 90, 99, 100)
    errors = np.percentile(delta, quantiles) if len(delta) else np.full(len(quantiles), np.nan)
    return {
        "images": len(labels),
        "validation": int(validation.sum()),
        "skipped": len(store.manifest["skipped"]),
        "all_zero_maps": store.manifest["zero_maps"],
        "files": len(store.manifest["files"]),
        "bytes": size,
        "bytes_per_image": round(size / max(1, len(labels))),
        "source": plan.images,
        "split": plan.split,
        "image_shape": list(plan.image_shape),
        "classes": dict(zip(distinct(plan.classes), np.bincount(labels, minlength=len(plan.classes)).tolist(), strict=True)),
        "teacher": plan.teacher[:16],
        "engine": plan.engine,
        "method": plan.method,
        "quadrature": plan.quadrature,
        "steps": plan.nodes,
        **_describe_views(store),
        "completeness_error": {f"p{q}": float(f"{v:.4g}") for q, v in zip(quantiles, errors, strict=True)},
        "completeness": judged(float(errors[0]), float(np.median(np.abs(lead))) if len(lead) else 0.0, plan.steps),
    }


def _lead(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each label's logit is above the mean of its image's logits: float64 (N,); labels outside the classes count as the nearest."""
    rows = np.arange(len(labels))
    label = np.clip(labels, 0, logits.shape[1] - 1)
    return np.asarray(logits[rows, label].astype(np.float64) - logits.mean(axis=1, dtype=np.float64))


def judged(error: float, lead: float, steps: int) -> str:
    """Whether a store's completeness error is good, as a sentence.

    The error is |sum of the attribution - (F(image) - F(baseline))|. Sundararajan, Taly and Yan (2017, "Axiomatic Attribution for Deep
    Networks") use as many steps as bring it within 5 % of that difference. F(baseline), which is not stored, is taken to be the mean logit.

    Args:
        error: median, in logits.
        lead: median of |the label's logit - the mean logit|.
        steps: nodes of the quadrature.
    """
    if not lead > 0:
        return "cannot be judged: the teacher's logits are all alike"
    share = error / lead
    found = f"the median error is {share:.1%} of the label's median lead over the mean logit, {lead:.3g}"
    return f"good: {found}" if share <= WITHIN else f"poor: {found}; {WITHIN:.0%} would be good, and more --steps than {steps} lower it"


def _describe_views(store: Store) -> dict[str, Any]:
    """Figures of the views; empty if the store has none."""
    views = store.views
    if views is None:
        return {}
    size = sum(file["bytes"] for file in read_manifest(store.uri, ViewsPlan)[1]["files"])
    crops = f"all {views.crops}" if views.count is None else f"{views.crops} random ones, seed {views.seed}"
    kind = "resized" if views.resized else "padded"
    kept = {} if views.top is None else {"largest_logits": views.top}
    return {"views": {"crops": crops, "kind": kind, **kept, "padding": views.padding, "engine": views.engine, "bytes": size}}


def folded(counts: dict[str, int]) -> str:
    """Many classes in one line: how many they are, and which have the fewest and the most images."""
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    empty = sum(count == 0 for count in counts.values())
    said = f"{len(counts):,}, of {counts[fewest]:,} ({fewest}) to {counts[most]:,} ({most}) images"
    return said + (f"; {empty:,} have none" if empty else "")
