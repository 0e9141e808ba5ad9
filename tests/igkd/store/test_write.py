"""What is written is what is read back, whole or not at all."""

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd import store
from igkd.base.errors import UserError
from igkd.store import Store, part_bytes, part_name
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
