"""What is written is what is read; a part appears whole or not at all, and a store is resumed."""

import dataclasses
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd import store
from igkd.base.errors import UserError
from igkd.store import DamagedPart, Store, part_bytes, part_name, to_numpy
from tests.helpers.paths import ROOT
from tests.helpers.pictures import BAD
from tests.helpers.stores import check_all, ids_of, some_columns, tiny_plan, write_all


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    side = st.integers(1, 7)
    plan = tiny_plan(
        rows=data.draw(st.integers(1, 12)),
        rows_per_file=data.draw(st.integers(1, 13)),
        shape=(data.draw(side), data.draw(side)),
        attention_shape=(data.draw(side), data.draw(side)),
        classes=tuple(f"class {i}" for i in range(data.draw(st.integers(1, 12)))),
        precision=data.draw(st.sampled_from(["float16", "float32"])),
        has_mask=data.draw(st.booleans()),
    )
    skipped = data.draw(st.sets(st.integers(0, plan.rows - 1)))
    uri = str(tmp_path_factory.mktemp("store"))
    manifest = write_all(uri, plan, skipped)
    assert store.verify(uri) == [] and store.start(uri, plan) == []
    assert manifest["rows"] == plan.rows - len(skipped) and {s["image_id"] for s in manifest["skipped"]} == skipped
    opened = Store.open(uri)
    assert opened.plan == plan
    expected = [
        some_columns(plan, [i for i in range(b, min(plan.rows, b + plan.rows_per_file)) if i not in skipped], b // plan.rows_per_file)
        for b in range(0, plan.rows, plan.rows_per_file)
    ]
    for name in plan.schema().names:
        read = opened.column(name)
        if name in ("image", "image_sha"):
            assert read.tolist() == [value for part in expected for value in part[name]]
        else:
            whole = np.concatenate([part[name] for part in expected])
            assert np.array_equal(read, whole) and read.shape == whole.shape
    samples, validation = opened.samples()
    assert samples.ids.tolist() == [i for i in range(plan.rows) if i not in skipped]
    assert np.array_equal(validation, np.concatenate([part["validation"] for part in expected]))
    assert samples.ig is not None and samples.ig.shape == (len(samples), *plan.image_shape)
    figures = store.describe(uri)
    assert figures["images"] == len(samples) and figures["skipped"] == len(skipped)


def test_equal_rows_are_equal_bytes(tmp_path: Path) -> None:
    plan = tiny_plan()
    one, two = (part_bytes(plan, some_columns(plan, range(4)), [{"image_id": 9}]) for _ in range(2))
    assert one == two != part_bytes(plan, some_columns(plan, range(4), 1), [{"image_id": 9}])
    program = (
        "import hashlib\n"
        "from igkd.store import part_bytes\n"
        "from tests.helpers.stores import tiny_plan, some_columns\n"
        "print(hashlib.sha256(part_bytes(tiny_plan(), some_columns(tiny_plan(), range(4)), [{'image_id': 9}])).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "77"}, capture_output=True, text=True
    )
    assert run.stdout.strip() == hashlib.sha256(one).hexdigest(), run.stderr


def test_any_parquet_reader_reads_it(finished: str) -> None:
    table = pq.read_table(f"{finished}/{part_name(0)}")
    assert table.column("image_id").to_pylist() == [i for i in range(7) if i not in BAD]
    assert np.shape(table.column("ig").to_pylist()[0]) == (32 * 32,) and table.schema.field("ig").type.shape == [32, 32]


def test_a_store_is_resumed_where_it_ended(tmp_path: Path) -> None:
    uri, plan = str(tmp_path / "new" / "store"), tiny_plan(rows=10, rows_per_file=3)
    assert store.start(uri, plan) == [0, 1, 2, 3]
    store.write_part(uri, plan, 2, some_columns(plan, [6, 7, 8]), [])
    assert store.start(uri, plan) == [0, 1, 3]
    with pytest.raises(UserError, match="unfinished.*run the same"):
        Store.open(uri)
    with pytest.raises(UserError, match=r"1 parts with 3 rows and 0 skipped images are not the 4 parts of 10 images .*run the same"):
        store.finish(uri, plan, [store.check_part(uri, plan, 2, ids_of(plan, 2))])
    assert not (tmp_path / "new" / "store" / "manifest.json").exists()


def test_a_part_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, plan = str(tmp_path), tiny_plan()
    store.start(uri, plan)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match=r"cannot write .*part-00000.parquet: No space left"):
        store.write_part(uri, plan, 0, some_columns(plan, range(4)), [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json"]


@pytest.mark.parametrize("when", ["plan.json", "part-00000.parquet"])
def test_a_killed_writer_leaves_no_part(tmp_path: Path, when: str) -> None:
    program = (
        "import os, signal, sys\n"
        "from igkd import store\n"
        "from tests.helpers.stores import some_columns, tiny_plan, write_all\n"
        "sync = os.fsync\n"
        "def die(fd):\n"
        "    if sys.argv[2] in os.readlink(f'/proc/self/fd/{fd}'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    sync(fd)\n"
        "os.fsync = die\n"
        "store.start(sys.argv[1], tiny_plan())\n"
        "store.write_part(sys.argv[1], tiny_plan(), 0, some_columns(tiny_plan(), range(4)), [])\n"
    )
    uri = tmp_path / "store"
    run = subprocess.run([sys.executable, "-c", program, str(uri), when], cwd=ROOT, capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert [p.name for p in uri.iterdir() if p.name.startswith(f".{when}.")] and not list(uri.glob("part-*"))
    assert store.start(str(uri), tiny_plan()) == [0, 1]
    store.remove_unfinished_files(str(uri))
    assert [p.name for p in uri.iterdir()] == ["plan.json"]
    write_all(str(uri), tiny_plan())
    assert store.verify(str(uri)) == []


def test_start_refuses_what_is_not_its_store(tmp_path: Path) -> None:
    plan = tiny_plan()
    uri = str(tmp_path / "store")
    store.start(uri, plan)
    store.write_part(uri, plan, 1, some_columns(plan, [4, 5]), [])
    with pytest.raises(UserError, match=r"other settings \(steps was 5 and is now 9, teacher was 'ttt.* and is now 'x'\)"):
        store.start(uri, dataclasses.replace(plan, steps=9, teacher="x"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"full exists and is not a store \(it has no plan.json\); choose another --store"):
        store.start(str(full), plan)
    assert [p.name for p in full.iterdir()] == ["thesis.tex"]
    foreign = tmp_path / "foreign"  # a plan of another program's, and one of ours in a directory of somebody's
    foreign.mkdir()
    (foreign / "plan.json").write_text('{"engine": "terraform"}')
    with pytest.raises(UserError, match="other settings"):
        store.start(str(foreign), plan)
    store.start(str(tmp_path / "shared"), dataclasses.replace(plan, steps=9))
    (tmp_path / "shared" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="other settings .steps was 9 and is now 5"):
        store.start(str(tmp_path / "shared"), plan)
    for inside in (full / "thesis.tex", full / "thesis.tex" / "store", Path("/proc/nowhere/store")):
        with pytest.raises(UserError, match="thesis.tex|nowhere"):
            store.start(str(inside), plan)
    for nonsense in ("{", "[1]", ""):
        (tmp_path / "store" / "plan.json").write_text(nonsense)
        with pytest.raises(UserError, match="cannot be used as a store"):
            store.start(uri, plan)
    with pytest.raises(UserError, match="Protocol not known: ftq"):
        store.start("ftq://host/store", plan)


def test_a_plan_alone_does_not_bind(tmp_path: Path) -> None:
    """Only with its first part a store is one: what was planned before is begun anew with other settings."""
    uri, plan = str(tmp_path / "store"), tiny_plan(rows=10, rows_per_file=3)
    other = dataclasses.replace(plan, engine="torch", teacher="x", rows_per_file=5, classes=("a", "b"))
    assert store.start(uri, plan) == [0, 1, 2, 3] and store.begun_with(uri) is None
    (tmp_path / "store" / ".part-00000.parquet.x.tmp").write_text("left by a killed writer")
    with store.hold(uri):
        assert store.start(uri, other) == [0, 1] == store.start(uri, other)
    store.write_part(uri, other, 1, some_columns(other, [5, 6, 7, 8, 9]), [])
    assert store.begun_with(uri) == ("torch", "q")
    with pytest.raises(UserError, match="other settings .classes was .*engine was 'torch' and is now 'captum'"):
        store.start(uri, plan)


def test_maps_that_are_all_zero_are_counted_and_told(tmp_path: Path) -> None:
    uri, plan = str(tmp_path), tiny_plan(rows=6, rows_per_file=4)
    store.start(uri, plan)
    entries = []
    for part, zero in ((0, [1, 2]), (1, [0])):
        columns = some_columns(plan, ids_of(plan, part), part)
        columns["ig"][zero] = 0
        columns["ig"][3:] = 1e-9  # which float16 rounds to 0
        entries.append(store.write_part(uri, plan, part, columns, []))
    assert [entry["zero_maps"] for entry in entries] == [3, 1] and check_all(uri, plan) == entries
    manifest = store.finish(uri, plan, entries)
    assert manifest["zero_maps"] == 4 and store.describe(uri)["all_zero_maps"] == 4 and store.verify(uri) == []
    assert store.zero_maps(manifest).startswith("4 of 6 maps are all zero: ") and "float16" in store.zero_maps(manifest)
    assert store.zero_maps(manifest | {"zero_maps": 0}) == ""
    command = [sys.executable, "-m", "igkd", "store", "verify", uri]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "is sound: 6 rows" in done.stdout and "4 of 6 maps are all zero" in done.stdout
    (tmp_path / "manifest.json").write_text((tmp_path / "manifest.json").read_text().replace('"zero_maps": 4', '"zero_maps": 0'))
    assert store.verify(uri) == ["4 maps are all zero, not the manifest's 0"]


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
