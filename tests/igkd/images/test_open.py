"""The built-in pictures, downloads, and what names no images."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from igkd.base.errors import UserError
from igkd.images import drawn_shapes
from igkd.images.codec import decode
from igkd.images.open import open_ahead, open_images
from tests.helpers.pictures import pngs, write_parquet


def test_shapes() -> None:
    source = open_images("shapes:train=25,test=7,seed=3")
    assert source.labels("train").tolist() == [i % 10 for i in range(25)] and len(source.labels("test")) == 7
    for record in source.read("train", [24, 3]):
        pixels, mask = drawn_shapes.draw(3, "train", record.image_id)
        assert np.array_equal(decode(record.image), pixels) and record.mask is not None and np.array_equal(record.mask, mask)
    assert open_images(str(source)) == source and len(open_images("shapes").labels("train")) == 5000


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "names no images"),
        ("parquet:", "use cifar10, shapes, parquet:URI, folder:PATH or hf:OWNER/NAME"),
        ("imagenet", "names no images"),
        ("s3://bucket/set", "names no images"),
        ("parquet:/no/such/place", "nothing is there"),
        ("parquet:ftq://host/set", "Protocol not known: ftq"),
        ("parquet:~nobody-of-that-name/set", "is no path"),
        ("folder:~nobody-of-that-name/set", "is no path"),
        ("shapes:train=many", "train=5000"),
        ("shapes:train=-1", "train=5000"),
        ("shapes:classes=3", "train=5000"),
        ("shapes:colour=3", "train=5000"),
    ],
)
def test_no_images(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_images(spec)


def test_cifar10_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGKD_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):  # a port where nobody listens: refused at once, whatever the network
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(UserError, match="parquet:") as caught:
        open_images("cifar10").labels("train")
    assert str(tmp_path) in str(caught.value) and "cifar-10-python.tar.gz" in str(caught.value)


def test_metadata_that_is_no_metadata(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pngs(2), [0, 1])
    for nonsense in ("{", "[]", json.dumps({"info": {"features": 3}}), json.dumps({"info": {"features": {"label": None}}})):
        pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": nonsense}), tmp_path / "b.parquet")
        assert open_images(f"parquet:{tmp_path}/b.parquet").classes == ("0", "1")


def test_what_was_opened_ahead_is_not_listed_again(tmp_path: Path) -> None:
    """But the next time after that it is: pictures may have come."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    spec = f"folder:{tmp_path}"
    ahead = open_ahead(spec)
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "2.png")
    assert open_images(spec) is ahead
    assert open_images(spec).fingerprint("train") != ahead.fingerprint("train")
