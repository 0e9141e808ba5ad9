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
from igkd.errors import UserError
from igkd.store import Store, part_bytes, part_name, to_numpy
from tests.conftest import BAD
from tests.igkd.store.conftest import ROOT, some_columns, tiny_plan, write_all


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
        "from tests.igkd.store.conftest import tiny_plan, some_columns\n"
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
    with pytest.raises(UserError, match=r"part-00000.parquet is missing; run the same"):
        store.finish(uri, plan)
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
        "from tests.igkd.store.conftest import some_columns, tiny_plan, write_all\n"
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
    write_all(str(uri), tiny_plan())
    assert store.verify(str(uri)) == []


def test_start_refuses_what_is_not_its_store(tmp_path: Path) -> None:
    plan = tiny_plan()
    uri = str(tmp_path / "store")
    store.start(uri, plan)
    with pytest.raises(UserError, match=r"other settings \(steps was 5 and is now 9, teacher was 'ttt.* and is now 'x'\)"):
        store.start(uri, dataclasses.replace(plan, steps=9, teacher="x"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"full exists and is not a store \(it has no plan.json\); choose another --store"):
        store.start(str(full), plan)
    assert [p.name for p in full.iterdir()] == ["thesis.tex"]
    for inside in (full / "thesis.tex", full / "thesis.tex" / "store", Path("/proc/nowhere/store")):
        with pytest.raises(UserError, match="thesis.tex|nowhere"):
            store.start(str(inside), plan)
    for nonsense in ("{", "[1]", ""):
        (tmp_path / "store" / "plan.json").write_text(nonsense)
        with pytest.raises(UserError, match="cannot be used as a store"):
            store.start(uri, plan)
    with pytest.raises(UserError, match="Protocol not known: ftq"):
        store.start("ftq://host/store", plan)


def test_finish_refuses_parts_that_do_not_fit(tmp_path: Path) -> None:
    uri, plan = str(tmp_path), tiny_plan()
    write_all(uri, plan)
    (tmp_path / "manifest.json").unlink()
    sound = (tmp_path / part_name(1)).read_bytes()
    for data, words in (
        (sound[:-100], "damaged .*cannot be read"),
        (b"", "damaged .*cannot be read"),
        (part_bytes(dataclasses.replace(plan, precision="float32"), some_columns(plan, [4, 5]), []), "does not have the store's columns"),
        (part_bytes(plan, some_columns(plan, [3, 5]), []), "not the 6 images that were asked for"),
        (part_bytes(plan, some_columns(plan, [4]), []), "5 rows and 0 skipped images are not the 6"),
    ):
        (tmp_path / part_name(1)).write_bytes(data)
        with pytest.raises(UserError, match=words):
            store.finish(uri, plan)
        assert not (tmp_path / "manifest.json").exists()


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
    store.finish(str(tmp_path / "store"), dataclasses.replace(plan, images="elsewhere"))
    assert store.verify(str(tmp_path / "store")) == []
