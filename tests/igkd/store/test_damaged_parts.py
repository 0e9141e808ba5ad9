"""Parts and manifests that do not fit are named, and what is missing is missing."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igkd import store
from igkd.base.errors import UserError
from igkd.store import DamagedPart, Store, part_bytes, part_name, to_numpy
from tests.helpers.stores import check_all, ids_of, some_columns, tiny_plan, write_all


def test_parts_that_do_not_fit_are_damaged(tmp_path: Path) -> None:
    uri, plan = str(tmp_path), tiny_plan()
    write_all(uri, plan)
    sound = (tmp_path / part_name(1)).read_bytes()
    for data, words in (
        (sound[:-100], "damaged .*cannot be read"),
        (b"", "damaged .*cannot be read"),
        (part_bytes(dataclasses.replace(plan, precision="float32"), some_columns(plan, [4, 5]), []), "does not have the store's columns"),
        (part_bytes(plan, some_columns(plan, [3, 5]), []), "2 rows and 0 skipped images are not the 2 images"),
        (part_bytes(plan, some_columns(plan, [4, 4]), []), "2 rows and 0 skipped images are not the 2 images"),
        (part_bytes(plan, some_columns(plan, [4]), []), "1 rows and 0 skipped images are not the 2"),
        (part_bytes(plan, some_columns(plan, [4]), [{"name": "5.png"}]), "damaged .*image_id"),
    ):
        (tmp_path / part_name(1)).write_bytes(data)
        with pytest.raises(DamagedPart, match=f"{part_name(1)} .*{words}"):
            store.check_part(uri, plan, 1, ids_of(plan, 1))
    (tmp_path / part_name(1)).unlink()
    with pytest.raises(DamagedPart, match=f"{part_name(1)} is missing"):
        store.check_part(uri, plan, 1, ids_of(plan, 1))


def test_a_part_with_other_bytes_than_the_manifests_is_damaged(tmp_path: Path) -> None:
    uri, plan = str(tmp_path), tiny_plan()
    sha256 = write_all(uri, plan)["files"][1]["sha256"]
    assert store.check_part(uri, plan, 1, ids_of(plan, 1), sha256)["sha256"] == sha256
    store.write_part(uri, plan, 1, some_columns(plan, [4, 5], 77), [])
    assert store.check_part(uri, plan, 1, ids_of(plan, 1))["sha256"] != sha256
    with pytest.raises(DamagedPart, match="its sha256 is not the manifest's"):
        store.check_part(uri, plan, 1, ids_of(plan, 1), sha256)


def test_what_was_written_is_what_is_read_back(tmp_path: Path) -> None:
    """A resumed store and one written at a stretch have the same manifest, in whatever order their parts came."""
    uri, plan = str(tmp_path), tiny_plan(rows=23, rows_per_file=4)
    manifest = write_all(uri, plan, skipped={0, 8, 9, 10, 11, 22})
    before = (tmp_path / "manifest.json").read_bytes()
    assert store.sound_manifest(uri, plan) == manifest
    store.discard(uri, plan, [])
    assert store.sound_manifest(uri, plan) is None and len(list(tmp_path.glob("part-*"))) == 6
    assert store.finish(uri, plan, reversed(check_all(uri, plan))) == manifest
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_storage_that_cannot_be_read_is_not_damage(tmp_path: Path) -> None:
    uri, plan = str(tmp_path), tiny_plan()
    write_all(uri, plan)
    (tmp_path / part_name(1)).unlink()
    (tmp_path / part_name(1)).mkdir()
    with pytest.raises(UserError, match="cannot be read") as caught:
        store.check_part(uri, plan, 1, ids_of(plan, 1))
    assert not isinstance(caught.value, DamagedPart)


def test_finish_refuses_what_is_not_all(tmp_path: Path) -> None:
    uri, plan = str(tmp_path), tiny_plan()
    write_all(uri, plan)
    one, two = check_all(uri, plan)
    store.discard(uri, plan, [])
    for entries in ([], [one], [one, two, two], [one, one], [one, two | {"rows": 1}], [one, two | {"skipped": [{"image_id": 9}]}]):
        with pytest.raises(UserError, match="are not the 2 parts of 6 images"):
            store.finish(uri, plan, entries)
        assert not (tmp_path / "manifest.json").exists()


def test_a_manifest_of_no_use_is_none(tmp_path: Path) -> None:
    uri, plan = str(tmp_path), tiny_plan()
    manifest = write_all(uri, plan)
    moved = dataclasses.replace(plan, images="elsewhere")
    assert store.sound_manifest(uri, moved) == manifest
    assert store.sound_manifest(uri, dataclasses.replace(plan, steps=6)) is None
    (tmp_path / "manifest.json").write_text("{")
    assert store.sound_manifest(uri, plan) is None


def test_discarded_parts_are_missing_and_others_are_not_touched(tmp_path: Path) -> None:
    uri, plan = str(tmp_path), tiny_plan(rows=12)
    write_all(uri, plan)
    before = (tmp_path / part_name(1)).stat().st_mtime_ns
    store.discard(uri, plan, [0, 2, 2])
    assert store.start(uri, plan) == [0, 2] and (tmp_path / part_name(1)).stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [part_name(1), "plan.json"]


def test_more_parts_than_the_names_have_digits_for(tmp_path: Path) -> None:
    plan = tiny_plan(rows=100_002, rows_per_file=1)
    entries = [{"name": part_name(part), "rows": 1, "bytes": 1, "sha256": "", "skipped": []} for part in range(plan.parts)]
    assert [file["name"] for file in store.finish(str(tmp_path), plan, entries)["files"]] == [entry["name"] for entry in entries]
    assert len(Store.open(str(tmp_path)).manifest["files"]) == 100_002


def test_empty_tables_are_tables() -> None:
    plan = tiny_plan()
    table = pq.read_table(pa.BufferReader(part_bytes(plan, some_columns(plan, []), [])))
    assert table.schema.equals(plan.schema()) and len(table) == 0
    assert to_numpy(table.column("ig")).shape == (0, 3, 5) and io.BytesIO(part_bytes(plan, some_columns(plan, []), [])).read(4) == b"PAR1"


def test_the_same_images_under_another_name_are_the_same_store(tmp_path: Path, finished: str) -> None:
    """Data that moved, or a path typed in another way, does not spoil a store."""
    plan = Store.open(finished).plan
    store.start(str(tmp_path / "store"), plan)
    assert store.start(str(tmp_path / "store"), dataclasses.replace(plan, images="elsewhere")) == list(range(plan.parts))
    for part in Path(finished).glob("part-*"):
        shutil.copy(part, tmp_path / "store")
    opened, asked = Store.open(finished), np.arange(plan.rows)
    entries = [store.check_part(finished, plan, p, asked[p * 7 : (p + 1) * 7], f["sha256"]) for p, f in enumerate(opened.manifest["files"])]
    store.finish(str(tmp_path / "store"), dataclasses.replace(plan, images="elsewhere"), entries)
    assert store.verify(str(tmp_path / "store")) == []
