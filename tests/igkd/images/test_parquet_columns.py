"""Which columns and files of Parquet are meant: what is clear is taken, what is not is a question."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igkd.base.errors import UserError
from igkd.images.open import open_images
from tests.helpers.pictures import number_of, pngs, write_parquet


def test_the_label_column_is_not_guessed(tmp_path: Path) -> None:
    table = pq.read_table(write_parquet(tmp_path / "a.parquet", pngs(4), [0, 1, 2, 3], list("abcd"), columns=("image", "fine_label")))
    metadata, index = table.schema.metadata, pa.array([9, 8, 7, 6])
    with_index = table.add_column(0, "index", index).replace_schema_metadata(metadata)
    pq.write_table(with_index, tmp_path / "b.parquet")
    (tmp_path / "b.parquet").rename(tmp_path / "train-b.parquet")
    source = open_images(f"parquet:{tmp_path}/train-b.parquet")
    assert source.labels("train").tolist() == [0, 1, 2, 3] and source.classes == tuple("abcd")
    pq.write_table(with_index.replace_schema_metadata(None), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="which of the integer columns index, fine_label is the label"):
        open_images(f"parquet:{tmp_path}/c.parquet")


def parquet_columns(path: Path, named: Sequence[str] = (), images: Sequence[str] = ("image",), **columns: Any) -> str:
    """A Parquet file of two pictures for each image column, and other columns; gives the source's name.

    Args:
        named: the columns whose values have names of classes, a to d.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    found = {name: pa.array([{"bytes": data} for data in pngs(2, 2 * i)], kind) for i, name in enumerate(images)}
    features = {name: {"names": list("abcd"), "_type": "ClassLabel"} for name in named}
    table = pa.table(found | columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return f"parquet:{path.parent}"


def test_class_names_may_be_a_map_from_numbers(tmp_path: Path) -> None:
    spec = parquet_columns(tmp_path / "train-0.parquet", label=[0, 1])
    table = pq.read_table(tmp_path / "train-0.parquet")
    features = {"label": {"names": {"10": "k", "2": "c", **{str(i): f"n{i}" for i in (0, 1, *range(3, 10))}}, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "train-0.parquet")
    assert open_images(spec).classes == ("n0", "n1", "c", *(f"n{i}" for i in range(3, 10)), "k")
    del features["label"]["names"]["1"]
    gap = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(gap), tmp_path / "train-0.parquet")
    assert open_images(spec).classes == ("0", "1")  # names that do not number the classes are none


@pytest.mark.parametrize(
    ("named", "columns", "words"),
    [
        (["fine_label", "coarse_label"], {"fine_label": [0, 1], "coarse_label": [1, 0]}, "integer columns fine_label, coarse_label is"),
        (["label", "coarse_label"], {"label": [0, 1], "coarse_label": [1, 0]}, "integer columns label, coarse_label is the label"),
        (["coarse"], {"coarse": [0, 1], "label": [1, 0]}, "integer columns coarse, label is the label"),
        ([], {"fine_label": [0, 1], "coarse_label": [1, 0]}, "integer columns fine_label, coarse_label is the label"),
        ([], {"label": [0, 1], "labels": [1, 0]}, "integer columns label, labels is the label"),
        ([], {"label": [0, 1], "fineLabel": [1, 0]}, "integer columns label, fineLabel is the label"),
        ([], {"x": [0, 1], "y": [1, 0]}, "integer columns x, y is the label"),
        ([], {"class_id": [0, 1], "width": [1, 1]}, "integer columns class_id, width is the label"),
        ([], {"image_id": [0, 1]}, "is its only integer column image_id the label"),
        ([], {"digit": [0, 1], "label": ["a", "b"]}, "the columns digit, label is the label"),
    ],
)
def test_which_column_is_the_label_is_a_question(tmp_path: Path, named: list[str], columns: dict[str, Any], words: str) -> None:
    spec = parquet_columns(tmp_path / "train-0.parquet", named, **columns)
    with pytest.raises(UserError, match=words) as caught:
        open_images(spec)
    assert "\n" not in str(caught.value) and "train-0.parquet" in str(caught.value)
    offered = re.search(r"parquet:URI(,label=\w+)$", str(caught.value))
    assert offered is not None
    assert open_images(spec + offered[1]).labels("train").tolist() == columns[offered[1].split("=")[1]]  # the answer that it offers is one
    for column, values in columns.items():
        if isinstance(values[0], int):
            source = open_images(f"{spec},label={column}")
            assert source.labels("train").tolist() == values and str(source) == f"{spec},label={column}"
            assert source.classes[:2] == (("a", "b") if column in named else ("0", "1"))
            again = open_images(str(source))
            assert again == source and again.fingerprint("train") == source.fingerprint("train")


@pytest.mark.parametrize(
    ("named", "columns", "label"),
    [
        (["label"], {"index": [5, 6], "label": [0, 1], "width": [4, 4]}, "label"),
        (["digit"], {"index": [5, 6], "digit": [0, 1]}, "digit"),
        ([], {"index": [5, 6], "label": [0, 1]}, "label"),
        ([], {"digit": [0, 1]}, "digit"),
        ([], {"class_id": [0, 1]}, "class_id"),
        ([], {"label": [0, 1], "class_name": ["a", "b"]}, "label"),
    ],
)
def test_where_the_label_is_clear_nobody_is_asked(tmp_path: Path, named: list[str], columns: dict[str, Any], label: str) -> None:
    assert open_images(parquet_columns(tmp_path / "train-0.parquet", named, **columns)).labels("train").tolist() == columns[label]


def test_which_column_is_the_image_is_a_question(tmp_path: Path) -> None:
    spec = parquet_columns(tmp_path / "set" / "train-0.parquet", ["label"], ["image", "thumb"], label=[0, 1])
    with pytest.raises(UserError, match="which of the image columns image, thumb is the image.*parquet:URI,image=image"):
        open_images(spec)
    for number, column in enumerate(("image", "thumb")):
        source = open_images(f"{spec},image={column},label=label")
        assert [number_of(r.image) for r in source.read("train", [1, 0])] == [2 * number + 1, 2 * number]
    assert open_images(f"{spec},label=label,image=thumb").fingerprint("train") == source.fingerprint("train")
    assert open_images(f"{spec},image=image").fingerprint("train") != source.fingerprint("train")
    for wrong, words in (
        (",image=label", "has no image column 'label'; write ,image=COLUMN with one of image, thumb"),
        (",image=thumb,label=thumb", "has no integer column 'thumb'"),
        (",image=", "is not understood"),
        (",image=thumb,image=image", "is not understood"),
        (",labels=label", "nothing is there; after URI there may be ,label=COLUMN and ,image=COLUMN"),
    ):
        with pytest.raises(UserError, match=words):
            open_images(spec + wrong)
    assert len(open_images(parquet_columns(tmp_path / "a, b,c=d" / "train-0.parquet", label=[0, 1])).labels("train")) == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("train-0 training-0", "not clear which are the train"),
        ("train-0 Train-1", "not clear which are the train"),
        ("train_a-0 train_b-0 test-0", "train_a.*not clear"),
        ("train-0 train_extra-0 test-0", r"train\*.parquet, train_extra\*.parquet: it is not clear"),
        ("train-0 data/train-0", "holds train.*and under data/ too"),
        ("train-00000-of-00003 train-00002-of-00003", "holds 2 files train.*which by their names are 3; get those that are missing"),
        ("train-00000-of-00002-0123456789abcdef train-00000-of-00002-fedcba9876543210", "one is there twice, or another is missing"),
        ("train-00001-of-00002 train-00007-of-00002", "one is there twice, or another is missing"),
        ("train-0-of-1 train-0-of-2 train-1-of-2", "holds 3 files train.*which by their names are 1 or 2"),
        ("part-0 part-1", r"holds no train-\*.parquet or test-\*.parquet.*; it holds part\*.parquet"),
    ],
)
def test_which_files_are_which_split_is_a_question(tmp_path: Path, names: str, words: str) -> None:
    for name in names.split():
        write_parquet(tmp_path / f"{name}.parquet", pngs(2), [0, 1])
    with pytest.raises(UserError, match=words) as caught:
        open_images(f"parquet:{tmp_path}")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_links_to_parquet_files(tmp_path: Path) -> None:
    pool = tmp_path / "set" / "pool"
    write_parquet(pool / "x", pngs(2), [0, 1])
    (tmp_path / "set" / "train-0.parquet").symlink_to("pool/x")
    spec = f"parquet:{tmp_path / 'set'}"
    assert len(open_images(spec).labels("train")) == 2
    for target, words in (("pool/x", "are one file"), ("pool/y", "test-0.parquet.* (where nothing is|cannot be read)")):
        (tmp_path / "set" / "test-0.parquet").symlink_to(target)
        with pytest.raises(UserError, match=words):
            open_images(spec)
        (tmp_path / "set" / "test-0.parquet").unlink()
    hub = tmp_path / "hub" / "datasets--x"  # as Hugging Face's cache is laid out
    write_parquet(hub / "blobs" / "0123abcd", pngs(3), [0, 1, 0])
    (hub / "snapshots" / "main" / "data").mkdir(parents=True)
    link = hub / "snapshots" / "main" / "data" / "train-0.parquet"
    link.symlink_to("../../../blobs/0123abcd")
    for place in (hub / "snapshots" / "main", link):
        assert len(open_images(f"parquet:{place}").labels("train")) == 3


def test_shards_may_be_counted_from_one(tmp_path: Path) -> None:
    for number in (1, 2):
        write_parquet(tmp_path / f"train-{number}-of-2.parquet", pngs(2), [0, 1])
    assert len(open_images(f"parquet:{tmp_path}").labels("train")) == 4


def test_columns_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    pictures = pa.array([{"bytes": one, "path": ""} for one in pngs(2)], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    numbers, other = pa.array([0, 1]), pa.array([b"x", b"y"])
    for number, (names, columns) in enumerate(
        ((["image", "label", "label"], [pictures, numbers, numbers]), (["image", "image.bytes", "label"], [pictures, other, numbers]))
    ):
        pq.write_table(pa.Table.from_arrays(columns, names=names), tmp_path / f"{number}.parquet")
        with pytest.raises(UserError, match="has more than one column (label|image.bytes): write it anew"):
            open_images(f"parquet:{tmp_path}/{number}.parquet,label=label")
