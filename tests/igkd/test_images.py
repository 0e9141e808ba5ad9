import json
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import center_crop, resize

from igkd import shapes
from igkd.errors import UserError
from igkd.images import BadImage, Scaling, decode, encode_png, open_images, pixel_hash
from igkd.pictures import Interpolation, scale_mask
from tests.conftest import encoded, write_parquet

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7


def picture(number: int) -> np.ndarray:
    """A picture that tells its number."""
    return np.full((4, 4, 3), (number % 256, number // 256, 77), np.uint8)


def number_of(image: bytes) -> int:
    red, green, _ = decode(image)[0, 0].tolist()
    return int(red + 256 * green)


def pngs(count: int, first: int = 0) -> list[bytes]:
    return [encoded(picture(i)) for i in range(first, first + count)]


def png_of_size(width: int, height: int) -> bytes:
    """A tiny PNG that claims to be this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


# --- decoding


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(encoded(PIXELS, kind, **options)), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(kind: str) -> None:
    smooth = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    seen = decode(encoded(smooth, kind, quality=95))
    assert seen.shape == (32, 32, 3) and np.abs(seen.astype(int) - smooth).mean() < 8


def test_palette_alpha_and_greyscale_become_rgb() -> None:
    palette = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(decode(encoded(palette)), np.asarray(palette.convert("RGB")))
    assert np.array_equal(decode(encoded(palette, transparency=0)), np.asarray(palette.convert("RGB")))
    rgba = np.dstack([PIXELS, RNG.integers(0, 256, (5, 7), dtype=np.uint8)])
    assert np.array_equal(decode(encoded(rgba)), PIXELS)
    assert np.array_equal(decode(encoded(GREY)), np.dstack([GREY] * 3))
    assert np.array_equal(decode(encoded(np.dstack([GREY, GREY]))), np.dstack([GREY] * 3))
    assert set(decode(encoded(Image.fromarray(GREY).convert("1"))).ravel().tolist()) <= {0, 255}
    assert decode(encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG")).shape == (5, 7, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_greys(kind: str) -> None:
    sixteen = GREY.astype(np.uint16) * 256 + 99
    assert np.array_equal(decode(encoded(sixteen, kind)), np.dstack([GREY] * 3))


def test_greyscale_without_a_white_is_refused() -> None:
    with pytest.raises(BadImage, match="32 bits"):
        decode(encoded(GREY.astype(np.float32) / 255, "TIFF"))


def test_crop_is_centred_and_scaled() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (decode(encoded(wide), (10, 10))[:, 1:-1] == 200).all()
    assert decode(encoded(PIXELS), (64, 48)).shape == (64, 48, 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("short_side", "side"), [(8, 5), (9, 9), (12, 7), (256, 224)])
def test_with_a_short_side_a_picture_is_torchvisions_to_the_pixel(interpolation: Interpolation, short_side: int, side: int) -> None:
    how = ImageClassification(crop_size=side, resize_size=short_side, interpolation=InterpolationMode(interpolation))
    for height, width in ((5, 7), (7, 5), (side, side), (short_side, short_side), (41, 30), (30, 41), (3, 17)):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = center_crop(resize(picture, how.resize_size, how.interpolation, antialias=how.antialias), how.crop_size)
        found = decode(encoded(picture), (side, side), Scaling(short_side, interpolation))
        assert np.array_equal(found, np.asarray(expected))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (how.mean, how.std))
        assert torch.allclose((torch.from_numpy(found.copy()).permute(2, 0, 1) / 255 - mean) / std, how(picture), atol=1e-6)


@pytest.mark.parametrize("how", [Scaling(), Scaling(24, "bilinear")])
def test_a_mask_is_scaled_with_its_picture(how: Scaling) -> None:
    pixels, mask = shapes.draw(0, "train", 3)
    drawn = np.where(mask[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    seen = decode(encoded(drawn), (20, 20), how)[:, :, 0] > 127
    assert pixels.shape[:2] == mask.shape and np.mean(scale_mask(mask, (20, 20), how) == seen) > 0.97
    assert np.array_equal(scale_mask(mask, mask.shape, Scaling()), mask)


def test_a_line_that_would_fill_the_memory_when_scaled_is_refused() -> None:
    with pytest.raises(BadImage, match="is too long and narrow .1x300000 pixels, height x width.*256 pixels along its shorter side"):
        decode(encoded(np.zeros((1, 300_000, 3), np.uint8)), (224, 224), Scaling(256, "bilinear"))


NOISE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no bytes"),
        (b"hello", "not a picture"),
        (encoded(NOISE, "JPEG")[:1500], "truncated"),
        (encoded(NOISE)[:1500], "truncated"),
        (png_of_size(30_000, 30_000), "bomb"),
    ],
    ids=["empty", "text", "jpeg", "png", "bomb"],
)
def test_bad_bytes_are_named(data: bytes, words: str) -> None:
    with pytest.raises(BadImage, match=words):
        decode(data)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "ICO"]), st.data())
def test_damaged_files_decode_or_are_bad_images(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(NOISE[:16, :16], kind))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        seen = decode(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except BadImage as error:
        assert str(error)
    else:
        assert seen.ndim == 3 and seen.shape[2] == 3 and seen.dtype == np.uint8


def test_the_hash_is_of_the_pixels_and_their_shape() -> None:
    assert encode_png(PIXELS) == encode_png(PIXELS) and np.array_equal(decode(encode_png(PIXELS)), PIXELS)
    assert pixel_hash(PIXELS) == pixel_hash(decode(encoded(PIXELS, "BMP"))) == pixel_hash(np.asfortranarray(PIXELS))
    assert len(pixel_hash(PIXELS)) == 16
    changed = PIXELS.copy()
    changed[4, 6, 2] ^= 1
    assert len({pixel_hash(p) for p in (PIXELS, changed, PIXELS.transpose(1, 0, 2), PIXELS.reshape(7, 5, 3))}) == 4


# --- Parquet


@pytest.fixture(params=["beside", "data", "metadata", "plain"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """40 train images in three files (one of them empty) and 5 test images; image i tells i, its label is i * 7 % 10."""
    directory = tmp_path / "data" if request.param == "data" else tmp_path
    names = None if request.param == "plain" else [f"class {i}" for i in range(10)]
    for number, (begin, end) in enumerate([(0, 17), (17, 17), (17, 40)]):
        labels = [i * 7 % 10 for i in range(begin, end)]
        write_parquet(directory / f"train-{number}-of-3.parquet", pngs(end - begin, begin), labels, names, row_group=4)
    write_parquet(directory / "test-0-of-1.parquet", pngs(5, 1000), [1, 2, 3, 4, 5], names)
    (tmp_path / "README.md").write_text("not data")
    return f"parquet:{tmp_path}"


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


def test_one_file_serves_as_either_split(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "anything.parquet", pngs(6), [0, 1, 2, 0, 1, 2])
    source = open_images(f"parquet:{path}")
    assert source.classes == ("0", "1", "2")
    assert source.labels("train").tolist() == source.labels("test").tolist() == [0, 1, 2, 0, 1, 2]
    assert [number_of(r.image) for r in source.read("test", [5, 2])] == [5, 2]


def test_relative_paths_mean_the_same_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "d" / "train.parquet", pngs(3), [0, 1, 0])
    (tmp_path / "f" / "cat").mkdir(parents=True)
    (tmp_path / "f" / "cat" / "a.png").write_bytes(pngs(1, 9)[0])
    monkeypatch.chdir(tmp_path)
    parquet, folder = open_images("parquet:d"), open_images("folder:f")
    monkeypatch.chdir("/")
    assert [number_of(r.image) for s in (parquet, folder) for r in open_images(str(s)).read("train", [0])] == [0, 9]


def test_the_label_column_is_not_guessed(tmp_path: Path) -> None:
    table = pq.read_table(write_parquet(tmp_path / "a.parquet", pngs(4), [0, 1, 2, 3], list("abcd"), columns=("image", "fine_label")))
    metadata, index = table.schema.metadata, pa.array([9, 8, 7, 6])
    with_index = table.add_column(0, "index", index).replace_schema_metadata(metadata)
    pq.write_table(with_index, tmp_path / "b.parquet")
    source = open_images(f"parquet:{tmp_path}/b.parquet")
    assert source.labels("train").tolist() == [0, 1, 2, 3] and source.classes == tuple("abcd")
    pq.write_table(with_index.replace_schema_metadata(None), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="which of the integer columns index, fine_label is the label"):
        open_images(f"parquet:{tmp_path}/c.parquet")


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
    write_parquet(tmp_path / "validation-0.parquet", pngs(2), [0, 1])
    source = open_images(f"parquet:{tmp_path}")
    assert len(source.labels("train")) == 2
    with pytest.raises(UserError, match=r"no test-\*.parquet, only splits train"):
        source.labels("test")


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
    assert len(open_images("parquet:s3://igkd/set/data/train-1.parquet").labels("test")) == 6
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


# --- folders, shapes, downloads, and what is none of these


@pytest.mark.parametrize("split", [True, False])
def test_folder(tmp_path: Path, split: bool) -> None:
    for number, (name, where) in enumerate([("dog", "b.png"), ("cat", "z.jpg"), ("cat", "deep/a.png"), ("ant", "1.webp")]):
        path = tmp_path / ("train" if split else "") / name / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number)))
    if split:
        (tmp_path / "test" / "cat").mkdir(parents=True)
        (tmp_path / "test" / "cat" / "only.png").write_bytes(encoded(picture(50)))
    (tmp_path / ("train" if split else "") / "dog" / ".DS_Store").write_text("hidden")
    source = pickle.loads(pickle.dumps(open_images(f"folder:{tmp_path}")))
    assert source.classes == ("ant", "cat", "dog") and source.labels("train").tolist() == [0, 1, 1, 2]
    assert [(r.image_id, r.label, number_of(r.image)) for r in source.read("train", [3, 0, 1])] == [(3, 2, 0), (0, 0, 3), (1, 1, 2)]
    assert source.labels("test").tolist() == ([1] if split else [0, 1, 1, 2])
    (tmp_path / ("train" if split else "") / "ant" / "2.png").write_bytes(b"more")
    assert open_images(f"folder:{tmp_path}").fingerprint("train") != source.fingerprint("train")


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        open_images(f"folder:{tmp_path}/missing")
    with pytest.raises(UserError, match="no class directories.*CLASS"):
        open_images(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    source = open_images(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="no images in split 'train'"):
        source.checked_labels("train")
    with pytest.raises(UserError, match="no 'test' directory, only train"):
        source.checked_labels("test")
    (tmp_path / "train" / "cat" / "a.png").write_bytes(b"gone soon")
    source = open_images(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat" / "a.png").unlink()
    with pytest.raises(UserError, match=r"cannot read .*cat/a.png: No such file"):
        list(source.read("train", [0]))


def test_shapes() -> None:
    source = open_images("shapes:train=25,test=7,seed=3")
    assert source.labels("train").tolist() == [i % 10 for i in range(25)] and len(source.labels("test")) == 7
    for record in source.read("train", [24, 3]):
        pixels, mask = shapes.draw(3, "train", record.image_id)
        assert np.array_equal(decode(record.image), pixels) and record.mask is not None and np.array_equal(record.mask, mask)
    assert open_images(str(source)) == source and len(open_images("shapes").labels("train")) == 5000


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "names no images"),
        ("parquet:", "use cifar10, shapes, parquet:URI or folder:PATH"),
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
