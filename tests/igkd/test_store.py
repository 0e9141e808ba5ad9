import dataclasses
import hashlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd import store
from igkd.errors import UserError
from igkd.images import decode, encode_png, pixel_hash
from igkd.store import Plan, Store, part_bytes, part_name, to_numpy
from tests.conftest import BAD, LABELS

ROOT = Path(store.__file__).parents[2]


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
        width=1.0,
        stride=1,
        steps=5,
        method="m",
        engine="e",
        precision="float16",
        attention_layer=9,
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
    for part in range(plan.parts):
        ids = range(part * plan.rows_per_file, min(plan.rows, (part + 1) * plan.rows_per_file))
        reasons = [{"image_id": i, "name": f"{i}.png", "reason": "is bad"} for i in ids if i in skipped]
        store.write_part(uri, plan, part, some_columns(plan, [i for i in ids if i not in skipped], part), reasons)
    return store.finish(uri, plan)


@pytest.fixture
def copy(finished: str, tmp_path: Path) -> Path:
    """A sound store that may be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def rewrite(directory: Path, part: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a part's rows and put the hash of the result into the manifest, so that only the rows can give it away."""
    path, manifest = directory / part_name(part), json.loads((directory / "manifest.json").read_bytes())
    table = pq.read_table(path)
    columns = {name: to_numpy(table.column(name)) for name in table.column_names}
    change(columns)
    data = part_bytes(Store.open(str(directory)).plan, columns, json.loads(table.schema.metadata[b"igkd.skipped"]))
    path.write_bytes(data)
    manifest["files"][part] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))


# --- what is written is what is read


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
        "from tests.igkd.test_store import tiny_plan, some_columns, part_bytes\n"
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


# --- appears whole or not at all, and is resumed


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
        "from tests.igkd.test_store import *\n"
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


# --- verify and describe


def test_a_sound_store(finished: str) -> None:
    lines: list[str] = []
    assert store.verify(finished, lines.append) == []
    assert lines == [f"{part_name(p)}: {n} rows" for p, n in enumerate((6, 7, 0, 7, 6))]
    assert [s["image_id"] for s in Store.open(finished).manifest["skipped"]] == list(BAD)
    assert {s["reason"] for s in Store.open(finished).manifest["skipped"]} == {
        "has no bytes",
        "does not decode (not a picture in a format PIL reads)",
    }


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


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
    "broken plan": (lambda d: (d / "plan.json").write_text("{"), ["plan.json cannot be read"]),
}


@pytest.mark.parametrize("damage", BYTES)
def test_verify_names_damaged_files(copy: Path, damage: str) -> None:
    act, expected = BYTES[damage]
    act(copy)
    problems = store.verify(str(copy))
    assert len(problems) == len(expected) and all(words in problem for words, problem in zip(expected, problems, strict=True)), problems


def duplicate_within(c: dict[str, Any]) -> None:
    c["image_id"][2] = c["image_id"][1]


def other_id(c: dict[str, Any]) -> None:
    c["image_id"][2] = 9999


def duplicate_across(c: dict[str, Any]) -> None:
    c["image_id"][0] = 3


def other_sha(c: dict[str, Any]) -> None:
    c["image_sha"][2] = bytes(16)


def swapped_images(c: dict[str, Any]) -> None:
    c["image"][[0, 1]] = c["image"][[1, 0]]


def not_a_picture(c: dict[str, Any]) -> None:
    c["image"][4] = b"nothing"


def another_size(c: dict[str, Any]) -> None:
    small = np.zeros((8, 9, 3), np.uint8)
    c["image"][4], c["image_sha"][4] = encode_png(small), pixel_hash(small)


def large_label(c: dict[str, Any]) -> None:
    c["label"][2] = 10


def negative_label(c: dict[str, Any]) -> None:
    c["label"][2] = -1


def not_finite(column: str, value: float) -> Callable[[dict[str, Any]], None]:
    def change(c: dict[str, Any]) -> None:
        c[column][(3, *[0] * (c[column].ndim - 1))] = value

    return change


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


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda m: m | {"plan": m["plan"] | {"version": 7}}, "has store version 7, this program reads version 1"),
    "setting": (lambda m: m | {"plan": m["plan"] | {"colour": 7}}, "manifest.json is damaged or not ours.*colour"),
    "no plan": (lambda m: {}, "manifest.json is damaged or not ours.*plan"),
    "list": (lambda m: [], "manifest.json is damaged or not ours"),
    "number": (lambda m: 3, "manifest.json is damaged or not ours"),
    "no files": (edited(files=[]), "does not list the 5 parts"),
    "elsewhere": (lambda m: m | {"files": [{**m["files"][0], "name": "../x"}, *m["files"][1:]]}, "does not list the 5 parts"),
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
    assert figures["completeness_error"]["p90"] == pytest.approx(delta[22] + 0.5 * (delta[23] - delta[22]), rel=1e-3)


# --- the command line


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "igkd.store", *arguments], cwd=ROOT, capture_output=True, text=True)


def in_this_process(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["igkd.store", *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("igkd.store", run_name="__main__", alter_sys=True)
    return caught.value.code


def test_verify_a_sound_store(finished: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_this_process(monkeypatch, "verify", finished) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{finished} is sound: 26 rows in 5 file(s), 8 image(s) skipped")
    assert err.splitlines() == [f"{part_name(p)}: {n} rows" for p, n in enumerate((6, 7, 0, 7, 6))]


def test_verify_from_the_shell_ends_with_status_1(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(copy / part_name(3), 10)
    rewrite(copy, 0, large_label)
    run = run_module("verify", str(copy))
    assert run.returncode == 1
    *problems, verdict = run.stdout.splitlines()
    assert "label 10 is outside" in problems[0] and "part-00003.parquet was changed" in problems[1] and len(problems) == 2
    assert verdict == f"{copy} is damaged: 2 problem(s)" and "part-00003.parquet: not usable" in run.stderr
    (copy / "manifest.json").unlink()
    assert in_this_process(monkeypatch, "verify", str(copy)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {copy} is unfinished") and err.count("\n") == 1


def test_describe_and_help(finished: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_this_process(monkeypatch, "describe", finished) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["images", "26"] and any(line.split() == ["image", "shape", "32", "x", "32"] for line in lines)
    assert any(line.split() == ["heart", str(store.describe(finished)["classes"]["heart"])] for line in lines)
    assert in_this_process(monkeypatch, "--help") == 0
    help_text = capsys.readouterr().out
    assert "verify" in help_text and "describe" in help_text
    assert in_this_process(monkeypatch) == 2


# --- S3


def test_a_store_on_s3(s3: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    uri, plan = "s3://igkd/a/store", tiny_plan(rows=10, rows_per_file=4)
    assert store.start(uri, plan) == [0, 1, 2]
    # Another process writes a part; this one has listed the directory before and must see it all the same.
    s3.put_object(Bucket="igkd", Key="a/store/part-00001.parquet", Body=part_bytes(plan, some_columns(plan, [4, 5, 6, 7], 1), []))
    assert store.start(uri, plan) == [0, 2]
    with pytest.raises(UserError, match="part-00000.parquet is missing"):
        store.finish(uri, plan)
    with pytest.raises(UserError, match="is unfinished"):
        Store.open(uri)
    write_all(uri, plan)
    assert store.verify(uri) == [] and Store.open(uri).samples()[0].ids.tolist() == list(range(10))
    assert store.describe(uri)["images"] == 10 and np.array_equal(Store.open(uri).column("image_id"), np.arange(10))
    data = s3.get_object(Bucket="igkd", Key="a/store/part-00002.parquet")["Body"].read()
    s3.put_object(Bucket="igkd", Key="a/store/part-00002.parquet", Body=flip(data))
    s3.put_object(Bucket="igkd", Key="a/store/part-00003.parquet", Body=data)
    s3.delete_object(Bucket="igkd", Key="a/store/part-00000.parquet")
    problems = store.verify(uri)
    assert len(problems) == 3 and "part-00003.parquet is not in the manifest" in problems
    assert "part-00000.parquet is missing" in problems and "part-00002.parquet was changed: its sha256 is not the manifest's" in problems
    assert in_this_process(monkeypatch, "verify", uri) == 1
    with pytest.raises(UserError, match=r"no-such-bucket.*does not exist"):
        store.start("s3://no-such-bucket/store", plan)
    with pytest.raises(UserError, match="holds no attribution store"):
        Store.open("s3://igkd/b")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for act in (lambda: Store.open(uri), lambda: store.start(uri, plan)):
        with pytest.raises(UserError, match="credentials"):
            act()


def test_the_pictures_are_the_ones_that_were_read(finished: str) -> None:
    for table in Store.open(finished).tables():
        for image, sha in zip(table.column("image").to_pylist(), table.column("image_sha").to_pylist(), strict=True):
            assert pixel_hash(decode(image)) == sha


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
