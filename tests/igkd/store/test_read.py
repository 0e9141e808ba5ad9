"""Readers refuse what is no store or is damaged."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igkd import store
from igkd.base.errors import UserError
from igkd.base.storage import filesystem, open_ranges
from igkd.images.codec import decode, pixel_hash
from igkd.store import VERSION, Store, part_name
from igkd.store.check import judged
from tests.helpers.damage import large_label, not_a_picture, rewrite, swapped_images
from tests.helpers.paths import ROOT
from tests.helpers.pictures import BAD, LABELS


@pytest.mark.parametrize("part", [0, 1, 4])
def test_readers_notice_flipped_bytes(copy: Path, part: int) -> None:
    path = copy / part_name(part)
    sound = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(5)
    assert column.path_in_schema.startswith("ig.")
    offset = column.data_page_offset + 200
    path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 4]) + sound[offset + 1 :])
    opened = Store.open(str(copy))
    for read in (opened.samples, lambda: opened.column("ig")):
        with pytest.raises(UserError, match=rf"{part_name(part)} is damaged .*igkd.store verify"):
            read()
    path.unlink()
    for read in (opened.samples, lambda: opened.column("ig")):
        with pytest.raises(UserError, match=rf"{part_name(part)} is missing; run the same"):
            read()


def test_samples_refuse_another_picture(copy: Path) -> None:
    rewrite(copy, 1, swapped_images)
    with pytest.raises(UserError, match="image 7 is not the one its map was made from"):
        Store.open(str(copy)).samples()
    rewrite(copy, 1, not_a_picture)
    rewrite(copy, 1, swapped_images)
    with pytest.raises(UserError, match="image 11 does not decode"):
        Store.open(str(copy)).samples()


def edited(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest | changes


def edited_part(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """A manifest in which an entry of the first part has another value, or is missing."""

    def change(manifest: dict[str, Any]) -> Any:
        first = {**manifest["files"][0], name: value}
        if value is None:
            del first[name]
        return manifest | {"files": [first, *manifest["files"][1:]]}

    return change


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda m: m | {"plan": m["plan"] | {"version": 7}}, f"has store version 7, this program reads version {VERSION}"),
    "setting": (lambda m: m | {"plan": m["plan"] | {"colour": 7}}, "manifest.json is damaged or not ours.*colour"),
    "no plan": (lambda m: {}, "manifest.json is damaged or not ours.*plan"),
    "list": (lambda m: [], "manifest.json is damaged or not ours"),
    "number": (lambda m: 3, "manifest.json is damaged or not ours"),
    "no files": (edited(files=[]), "does not list the 5 parts"),
    "elsewhere": (lambda m: m | {"files": [{**m["files"][0], "name": "../x"}, *m["files"][1:]]}, "does not list the 5 parts"),
    **{
        f"{name} {value}": (edited_part(name, value), "does not say how many rows and bytes each part has, and their hash|KeyError")
        for name, value in (("bytes", None), ("bytes", "12"), ("sha256", None), ("sha256", 3), ("rows", "6"))
    },
    "rows": (edited(rows=25), "do not add up"),
    "skipped": (edited(skipped=[]), "do not add up"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_is_none(copy: Path, kind: str) -> None:
    change, words = MANIFESTS[kind]
    path = copy / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    with pytest.raises(UserError, match=words):
        store.verify(str(copy))


def test_no_store(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").write_bytes(b"\x00\xff not JSON")
    with pytest.raises(UserError, match="manifest.json is damaged or not ours"):
        Store.open(str(copy))
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match="is unfinished"):
        store.verify(str(copy))
    for nothing in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match=r"holds no attribution store; make one with"):
            store.describe(str(nothing))


def test_the_fingerprint_is_of_everything(finished: str, copy: Path) -> None:
    before = Store.open(finished).fingerprint()
    assert Store.open(str(copy)).fingerprint() == before
    rewrite(copy, 1, large_label)
    assert Store.open(str(copy)).fingerprint() != before


def test_describe_by_hand(finished: str, parquet_images: str, store_config: Any) -> None:
    figures = store.describe(finished)
    parts = [Path(finished, part_name(p)) for p in range(5)]
    good = [i for i in range(34) if i not in BAD]
    delta = np.sort(np.abs(np.concatenate([pq.read_table(p).column("ig_delta").to_numpy() for p in parts]).astype(np.float64)))
    assert figures["images"] == 26 and figures["skipped"] == 8 and figures["files"] == 5
    assert figures["bytes"] == sum(p.stat().st_size for p in parts) and figures["bytes_per_image"] == round(figures["bytes"] / 26)
    assert list(figures["classes"].values()) == [sum(LABELS[i] == k for i in good) for k in range(10)]
    assert figures["validation"] == sum(sum(pq.read_table(p).column("validation").to_pylist()) for p in parts)
    card = json.loads(Path(store_config.teacher, "model.json").read_bytes())
    assert figures["teacher"] == card["sha256"][:16] and figures["image_shape"] == [32, 32] and figures["steps"] == 5
    assert figures["source"] == parquet_images and figures["split"] == "train"
    assert figures["completeness_error"]["p100"] == pytest.approx(delta[-1], rel=1e-3)
    assert figures["completeness_error"]["p50"] == pytest.approx((delta[12] + delta[13]) / 2, rel=1e-3)
    tables = [pq.read_table(p) for p in parts]
    leads = [row[k] - sum(row) / len(row) for t in tables for row, k in zip(t["logits"].to_pylist(), t["label"].to_pylist(), strict=True)]
    middle = np.median(np.abs(leads))
    assert figures["completeness"] == judged(float(np.median(delta)), float(middle), 5)
    assert f"{np.median(delta) / middle:.1%} of" in figures["completeness"]
    assert judged(0.05, 1.0, 50).startswith("good: ") and "more --steps than 5 lower it" in judged(0.051, 1.0, 5)
    assert judged(0.1, 0.0, 5) == "cannot be judged: the teacher's logits are all alike"
    assert figures["completeness_error"]["p90"] == pytest.approx(delta[22] + 0.5 * (delta[23] - delta[22]), rel=1e-3)


def test_the_pictures_are_the_ones_that_were_read(finished: str) -> None:
    for table in Store.open(finished).tables():
        for image, sha in zip(table.column("image").to_pylist(), table.column("image_sha").to_pylist(), strict=True):
            assert pixel_hash(decode(image)) == sha


READS = """
import os, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from igkd.store import Store
from igkd.store.read import part_table

def threads():
    return len(os.listdir("/proc/self/task"))

plan, data = Store.open(sys.argv[1]).plan, Path(sys.argv[1], "part-00000.parquet").read_bytes()
before = threads()
table = part_table(data, plan)
ours = threads()
assert pq.ParquetFile(pa.BufferReader(data)).read().num_rows == table.num_rows
print(before, ours, threads(), flush=True)
os._exit(0)  # with the last one's threads, the end of Python may abort the process
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux lists a process's threads there")
def test_reading_a_part_starts_no_thread_that_could_abort_the_process_when_it_ends(finished: str) -> None:
    done = subprocess.run([sys.executable, "-c", READS, finished], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, ours, usual = map(int, done.stdout.split())
    assert before == ours < usual, "the last one is pyarrow's usual way, which starts threads"


def test_a_local_file_is_opened_by_pyarrow_itself(finished: str) -> None:
    with open_ranges(*filesystem(f"{finished}/{part_name(0)}")) as opened:
        assert type(opened) is pa.OSFile
