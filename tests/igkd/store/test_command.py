"""`igkd store`, also on S3."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs

from igkd import store
from igkd.base.errors import UserError
from igkd.store import Store, part_bytes, part_name
from igkd.store.check import folded
from tests.helpers.damage import flip, large_label, rewrite
from tests.helpers.paths import ROOT
from tests.helpers.stores import some_columns, tiny_plan, write_all


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "igkd", "store", *arguments], cwd=ROOT, capture_output=True, text=True)


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


def test_classes_of_one_name_are_counted_each(tmp_path: Path) -> None:
    plan = tiny_plan(classes=("crane", "dog", "crane"))
    write_all(str(tmp_path / "s"), plan)
    found = store.describe(str(tmp_path / "s"))
    assert list(found["classes"]) == ["crane (0)", "dog", "crane (2)"] and sum(found["classes"].values()) == found["images"]


def test_describe_and_help(finished: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_this_process(monkeypatch, "describe", finished) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["images", "26"] and any(line.split() == ["image", "shape", "32", "x", "32"] for line in lines)
    assert any(line.split() == ["heart", str(store.describe(finished)["classes"]["heart"])] for line in lines)
    assert in_this_process(monkeypatch, "--help") == 0
    help_text = capsys.readouterr().out
    assert "verify" in help_text and "describe" in help_text
    assert in_this_process(monkeypatch) == 2


def test_a_thousand_classes_are_a_line() -> None:
    counts = {f"class {i}": 500 + i for i in range(1000)}
    assert folded(counts) == "1,000, of 500 (class 0) to 1,499 (class 999) images"
    assert folded(counts | {"class 7": 0, "class 9": 0}) == "1,000, of 0 (class 7) to 1,499 (class 999) images; 2 have none"


def test_a_store_on_s3(s3: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    uri, plan = "s3://igkd/a/store", tiny_plan(rows=10, rows_per_file=4)
    assert store.start(uri, plan) == [0, 1, 2]
    # Another process writes a part; this one has listed the directory before and must see it all the same.
    s3.put_object(Bucket="igkd", Key="a/store/part-00001.parquet", Body=part_bytes(plan, some_columns(plan, [4, 5, 6, 7], 1), []))
    assert store.start(uri, plan) == [0, 2]
    with pytest.raises(store.DamagedPart, match="part-00000.parquet is missing"):
        store.check_part(uri, plan, 0, np.arange(4))
    assert store.check_part(uri, plan, 1, np.arange(4, 8))["rows"] == 4
    with pytest.raises(UserError, match="is unfinished"):
        Store.open(uri)
    write_all(uri, plan)
    store.remove_unfinished_files(uri)
    store.discard(uri, plan, [2])
    assert store.start(uri, plan) == [2] and store.sound_manifest(uri, plan) is None
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
