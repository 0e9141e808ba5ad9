"""Every kind of damage is found and named."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igkd import store
from igkd.store import Store, part_name
from tests.helpers.damage import (
    another_size,
    duplicate_across,
    duplicate_within,
    flip,
    large_label,
    negative_label,
    not_a_picture,
    not_finite,
    other_id,
    other_sha,
    rewrite,
    swapped_images,
)
from tests.helpers.pictures import BAD


def test_a_sound_store(finished: str) -> None:
    lines: list[str] = []
    assert store.verify(finished, lines.append) == []
    assert lines == [f"{part_name(p)}: {n} rows" for p, n in enumerate((6, 7, 0, 7, 6))]
    assert [s["image_id"] for s in Store.open(finished).manifest["skipped"]] == list(BAD)
    assert {s["reason"] for s in Store.open(finished).manifest["skipped"]} == {
        "has no bytes",
        "does not decode (not a picture in a format PIL reads)",
    }


BYTES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "flipped byte": (
        lambda d: (d / part_name(1)).write_bytes(flip((d / part_name(1)).read_bytes())),
        ["part-00001.parquet was changed: its sha256"],
    ),
    "truncated": (lambda d: os.truncate(d / part_name(1), 999), ["part-00001.parquet was changed: it has 999 bytes instead of"]),
    "missing": (lambda d: (d / part_name(3)).unlink(), ["part-00003.parquet is missing"]),
    "stray": (lambda d: shutil.copy(d / part_name(3), d / part_name(5)), ["part-00005.parquet is not in the manifest"]),
    "two at once": (
        lambda d: ((d / part_name(3)).unlink(), os.truncate(d / part_name(0), 0)),
        ["part-00000.parquet was changed: it has 0 bytes", "part-00003.parquet is missing"],
    ),
    "a directory": (
        lambda d: ((d / part_name(3)).unlink(), (d / part_name(3)).mkdir()),
        ["part-00003.parquet cannot be read"],
    ),
    "no plan": (lambda d: (d / "plan.json").unlink(), ["plan.json is missing"]),
    "other plan": (lambda d: (d / "plan.json").write_text("{}"), ["plan.json is not the manifest's plan"]),
    "a list for a plan": (lambda d: (d / "plan.json").write_text("[]"), ["plan.json is not the manifest's plan"]),
    "a number for a plan": (lambda d: (d / "plan.json").write_text("3"), ["plan.json is not the manifest's plan"]),
    "broken plan": (lambda d: (d / "plan.json").write_text("{"), ["plan.json cannot be read"]),
}


@pytest.mark.parametrize("damage", BYTES)
def test_verify_names_damaged_files(copy: Path, damage: str) -> None:
    act, expected = BYTES[damage]
    act(copy)
    problems = store.verify(str(copy))
    assert len(problems) == len(expected) and all(words in problem for words, problem in zip(expected, problems, strict=True)), problems


ROWS: dict[str, tuple[Callable[[dict[str, Any]], None], list[str]]] = {
    "duplicate id": (duplicate_within, ["image 8: the same id is in part-00001.parquet"]),
    "duplicate id in another part": (duplicate_across, ["image 3: the same id is in part-00000.parquet"]),
    "another id": (other_id, ["the ids in the store are not the ids that were asked for"]),
    "image_sha": (other_sha, ["image 9: the picture does not have the hash in image_sha"]),
    "swapped images": (swapped_images, ["image 7: the picture does not have", "image 8: the picture does not have"]),
    "no picture": (not_a_picture, ["image 11: the picture does not decode"]),
    "another size": (another_size, ["image 11: the picture is 8x9, not 32x32"]),
    "label": (large_label, ["image 9: label 10 is outside the 10 classes"]),
    "negative label": (negative_label, ["image 9: label -1 is outside the 10 classes"]),
    "NaN in ig": (not_finite("ig", np.nan), ["image 10: ig is not finite"]),
    "infinite ig": (not_finite("ig", np.inf), ["image 10: ig is not finite"]),
    "NaN in ig_delta": (not_finite("ig_delta", np.nan), ["image 10: ig_delta is not finite"]),
    "NaN in logits": (not_finite("logits", np.nan), ["image 10: logits is not finite"]),
    "NaN in attention": (not_finite("attention", np.nan), ["image 10: attention is not finite"]),
}


@pytest.mark.parametrize("damage", ROWS)
def test_verify_names_damaged_rows(copy: Path, damage: str) -> None:
    change, expected = ROWS[damage]
    rewrite(copy, 1, change)
    problems = store.verify(str(copy))
    assert len(problems) == len(expected) and all(words in problem for words, problem in zip(expected, problems, strict=True)), problems


def test_a_rewrite_that_changes_nothing_is_sound(copy: Path) -> None:
    for part in range(5):
        rewrite(copy, part, lambda c: None)
    assert store.verify(str(copy)) == []
