"""Pictures in Parquet files."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd.base.choices import Split
from igkd.base.errors import UserError
from igkd.images.open import open_images, tell
from tests.helpers.pictures import number_of, pngs, write_parquet


def test_parquet(hub: str) -> None:
    source = open_images(hub)
    assert len(source.classes) == 10 and source.classes[3] in ("3", "class 3")
    assert source.checked_labels("train").tolist() == [i * 7 % 10 for i in range(40)]
    assert source.labels("test").tolist() == [1, 2, 3, 4, 5] and source.labels("train").dtype == np.int64
    ids = [39, 0, 16, 17, 3, 18, 17, 5, 30]  # out of order, across files and row groups, one twice
    read = list(pickle.loads(pickle.dumps(source)).read("train", ids))
    assert [r.image_id for r in read] == [number_of(r.image) for r in read] == ids
    assert [r.label for r in read] == [i * 7 % 10 for i in ids]
    assert [number_of(r.image) for r in source.read("test", [4, 1])] == [1004, 1001]
    assert list(source.read("train", [])) == []
    again = open_images(str(source))
    assert again == source and again.fingerprint("train") == source.fingerprint("train") != source.fingerprint("test")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=4).filter(any), st.integers(1, 5), st.data())
def test_any_ids_from_any_files(tmp_path_factory: Any, sizes: list[int], group: int, data: st.DataObject) -> None:
    directory, start = tmp_path_factory.mktemp("any"), 0
    for number, size in enumerate(sizes):
        write_parquet(directory / f"train-{number}.parquet", pngs(size, start), [start + k for k in range(size)], row_group=group)
        start += size
    ids = data.draw(st.lists(st.integers(0, start - 1), max_size=12))
    read = list(open_images(f"parquet:{directory}").read("train", ids))
    assert [r.image_id for r in read] == [r.label for r in read] == [number_of(r.image) for r in read] == ids


@pytest.mark.parametrize("names", [None, list("abc")])
def test_one_file_is_split_by_a_rule_that_is_told(tmp_path: Path, names: list[str] | None, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [0, 1, 2, 0, 1, 2] * 5
    path = write_parquet(tmp_path / "anything.parquet", pngs(30), labels, names)
    source = pickle.loads(pickle.dumps(open_images(f"parquet:{path}")))
    assert source.classes == (tuple(names) if names else ("0", "1", "2"))
    numbers = {}
    for split in ("train", "test"):
        found = source.checked_labels(split).tolist()
        read = list(source.read(split, range(len(found))))
        assert [(r.image_id, r.label) for r in read] == list(enumerate(found))
        numbers[split] = [number_of(r.image) for r in read]
        assert [labels[n] for n in numbers[split]] == found
        assert [number_of(r.image) for r in source.read(split, [3, 0])] == [numbers[split][3], numbers[split][0]]
    assert sorted(numbers["train"] + numbers["test"]) == list(range(30)) and np.bincount(source.labels("test")).tolist() == [2, 2, 2]
    assert source.fingerprint("train") != source.fingerprint("test")
    tell(source)
    tell(open_images(str(source)))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "6 of its 30 pictures" in said and "test split" in said and "anything.parquet" in said


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002", "train"),
        ("TEST", "test"),
        ("validation-0", "test"),
        ("cifar_test", "test"),
        ("train", "train"),
        ("train_part_3", "train"),
    ],
)
def test_one_file_is_the_split_that_its_name_tells(tmp_path: Path, name: str, split: Split) -> None:
    path = write_parquet(tmp_path / f"{name}.parquet", pngs(6), [0, 1, 2, 0, 1, 2])
    source = open_images(f"parquet:{path}")
    assert source.checked_labels(split).tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(UserError, match=f"only splits {split}"):
        source.labels("test" if split == "train" else "train")


def test_relative_paths_mean_the_same_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "d" / "train.parquet", pngs(3), [0, 1, 0])
    (tmp_path / "f" / "cat").mkdir(parents=True)
    (tmp_path / "f" / "cat" / "a.png").write_bytes(pngs(1, 9)[0])
    monkeypatch.chdir(tmp_path)
    parquet, folder = open_images("parquet:d"), open_images("folder:f")
    monkeypatch.chdir("/")
    assert [number_of(r.image) for s in (parquet, folder) for r in open_images(str(s)).read("train", [0])] == [0, 9]


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_pictures_that_another_writer_encoded_otherwise_are_the_same(tmp_path: Path, encoding: str) -> None:
    """DuckDB writes the first, with PARQUET_VERSION V2."""
    table = pq.read_table(write_parquet(tmp_path / "plain.parquet", pngs(9), list(range(9))))
    place = tmp_path / "other" / "train-0.parquet"
    place.parent.mkdir()
    pq.write_table(table, place, column_encoding={"img.bytes": encoding, "label": "PLAIN"}, use_dictionary=False, row_group_size=4)
    assert encoding in pq.ParquetFile(place).metadata.row_group(0).column(0).encodings
    read = list(open_images(f"parquet:{place}").read("train", [8, 0, 5]))
    assert [number_of(record.image) for record in read] == [8, 0, 5]


def test_pictures_that_share_their_beginnings_are_refused(tmp_path: Path) -> None:
    """By that encoding a small file may hold any number of copies of a large value."""
    table = pq.read_table(write_parquet(tmp_path / "plain.parquet", pngs(9), list(range(9))))
    place = tmp_path / "train-0.parquet"
    pq.write_table(table, place, column_encoding={"img.bytes": "DELTA_BYTE_ARRAY", "label": "PLAIN"}, use_dictionary=False)
    with pytest.raises(UserError, match=r"are delta-encoded \(DELTA_BYTE_ARRAY\); write it anew"):
        list(open_images(f"parquet:{place}").read("train", [0]))
