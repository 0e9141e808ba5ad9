"""Parquet files that do not belong together, are damaged, or hold what is no picture; and those on S3."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from igkd.base.errors import UserError
from igkd.images.codec import decode
from igkd.images.open import open_images
from tests.helpers.pictures import number_of, pngs, write_parquet

RNG = np.random.default_rng(0)


def test_files_of_different_kinds_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", pngs(2), [0, 1], ["a", "b"])
    write_parquet(tmp_path / "train-1.parquet", pngs(2), [0, 1], ["b", "a"])
    with pytest.raises(UserError, match=r"train-1.parquet and .*train-0.parquet do not belong together"):
        open_images(f"parquet:{tmp_path}")
    write_parquet(tmp_path / "train-1.parquet", pngs(2), [0, 1], ["a", "b"], columns=("image", "label"))
    with pytest.raises(UserError, match="do not belong together"):
        open_images(f"parquet:{tmp_path}")


def test_a_neighbouring_split_is_not_mixed_in(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", pngs(2), [0, 1])
    write_parquet(tmp_path / "trainval-0.parquet", pngs(2), [0, 1])
    write_parquet(tmp_path / "validation-0.parquet", pngs(3), [0, 1, 1])
    source = open_images(f"parquet:{tmp_path}")
    assert len(source.labels("train")) == 2 and len(source.labels("test")) == 3  # without a test split, validation is one
    assert source.notes == (
        f"parquet:{tmp_path}: the train split is train*.parquet, the test split is validation*.parquet; not used: trainval*.parquet",
    )
    write_parquet(tmp_path / "test-0.parquet", pngs(1), [1])
    assert len(open_images(f"parquet:{tmp_path}").labels("test")) == 1
    (tmp_path / "test-0.parquet").unlink()
    (tmp_path / "validation-0.parquet").unlink()
    with pytest.raises(UserError, match=r"no test-\*.parquet, only splits train"):
        open_images(f"parquet:{tmp_path}").labels("test")


def test_parquet_with_bad_content(tmp_path: Path) -> None:
    path = tmp_path / "train-0.parquet"

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as caught:
            open_images(f"parquet:{tmp_path}").checked_labels("train")
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)

    refused("holds no train-")
    path.write_bytes(b"")
    refused("train-0.parquet is not a readable Parquet file")
    path.write_bytes(b"just some text, longer than a footer")
    refused("train-0.parquet is not a readable Parquet file")
    write_parquet(path, pngs(3), [0, 1, 2])
    path.write_bytes(path.read_bytes()[:-200])
    refused("train-0.parquet is not a readable Parquet file")
    pq.write_table(pa.table({"text": ["a"], "score": [1.5]}), path)
    refused("not in the Hugging Face layout.*text: string, score: double")
    write_parquet(path, pngs(3), [0, None, 1])
    refused(r"train-0.parquet: column 'label' has 1 empty label")
    write_parquet(path, pngs(3), [0, 7, 1], ["a", "b"])
    refused("image 1 has label 7, outside the 2 classes")
    write_parquet(path, pngs(3), [0, -1, -1])
    refused(r"image 1 has label -1, outside the 1 classes \(0 to 0\); 2 image")
    write_parquet(path, pngs(3), [0, 10**15, 1])
    refused("no class numbers")
    write_parquet(path, [], [], ["a"])
    refused("no images in split 'train'")


def test_damage_behind_a_good_footer_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train-0.parquet", [RNG.bytes(2000) for _ in range(8)], list(range(8)), row_group=8)
    sound = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    sound[start : start + 40] = b"\xff" * 40
    path.write_bytes(sound)
    source = open_images(f"parquet:{tmp_path}")
    with pytest.raises(UserError, match="train-0.parquet is not a readable Parquet file"):
        list(source.read("train", [3]))


def test_null_images_have_no_bytes(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", [None, pngs(1)[0]], [0, 1])
    first, second = open_images(f"parquet:{path}").read("train", [0, 1])
    assert first.image == b"" and number_of(second.image) == 0
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"img": pa.array([None, None], kind), "label": [0, 1]}), path)
    assert [r.image for r in open_images(f"parquet:{path}").read("train", [1, 0])] == [b"", b""]


def test_parquet_on_s3(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        path = write_parquet(tmp_path / f"{number}.parquet", pngs(6, 6 * number), [0, 1, 2, 0, 1, 2], ["a", "b", "c"])
        s3.put_object(Bucket="igkd", Key=f"set/data/train-{number}.parquet", Body=path.read_bytes())
    source = open_images("parquet:s3://igkd/set")
    assert source.classes == ("a", "b", "c") and len(source.checked_labels("train")) == 12
    assert [number_of(r.image) for r in source.read("train", [11, 2, 6])] == [11, 2, 6]
    assert str(source) == "parquet:s3://igkd/set" and open_images(str(source)).fingerprint("train") == source.fingerprint("train")
    assert len(open_images("parquet:s3://igkd/set/data/train-1.parquet").labels("train")) == 6
    for missing, words in (("s3://igkd/other", "nothing is there"), ("s3://no-such-bucket/set", "the bucket does not exist")):
        with pytest.raises(UserError, match=words):
            open_images(f"parquet:{missing}")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="credentials"):
        open_images("parquet:s3://igkd/set")


@pytest.mark.skipif("IGKD_CIFAR10" not in os.environ, reason="IGKD_CIFAR10 is not set")
def test_the_real_cifar10() -> None:
    source = open_images(f"parquet:{os.environ['IGKD_CIFAR10']}")
    assert source.classes == open_images("cifar10").classes
    assert np.bincount(source.checked_labels("train")).tolist() == [5000] * 10
    assert np.bincount(source.checked_labels("test")).tolist() == [1000] * 10
    labels = source.labels("train")
    for record in source.read("train", [0, 4999, 5000, 49_999]):
        assert decode(record.image).shape == (32, 32, 3) and record.label == labels[record.image_id]
