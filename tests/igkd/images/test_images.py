import json
import os
import pickle
import re
import struct
from collections.abc import Sequence
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

from igkd.base.choices import Split
from igkd.base.errors import UserError
from igkd.images import codec, drawn_shapes
from igkd.images.codec import BadImage, Interpolation, Scaling, decode, encode_png, pixel_hash, scale_mask
from igkd.images.open import loose_pictures, open_images, tell
from tests.helpers.pictures import encoded, png_of_size, write_parquet

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
NOISE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7


def picture(number: int) -> np.ndarray:
    """A picture that tells its number."""
    return np.full((4, 4, 3), (number % 256, number // 256, 77), np.uint8)


def number_of(image: bytes) -> int:
    red, green, _ = decode(image)[0, 0].tolist()
    return int(red + 256 * green)


def pngs(count: int, first: int = 0) -> list[bytes]:
    return [encoded(picture(i)) for i in range(first, first + count)]


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


PHOTO = np.arange(24 * 16 * 3, dtype=np.uint8).reshape(24, 16, 3) // 8 * 8
"""Unlike itself however it is turned or mirrored."""
AS_STORED = {  # what a camera writes of PHOTO for each orientation: the inverse of what its number means in the EXIF standard
    1: PHOTO,
    2: PHOTO[:, ::-1],
    3: PHOTO[::-1, ::-1],
    4: PHOTO[::-1],
    5: PHOTO.transpose(1, 0, 2),
    6: np.rot90(PHOTO),
    7: np.rot90(PHOTO, 2).transpose(1, 0, 2),
    8: np.rot90(PHOTO, -1),
}


def exif(orientation: Any) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TIFF-lzw", "AVIF", "JPEG", "MPO"])
@pytest.mark.parametrize("orientation", AS_STORED)
def test_photographs_are_turned_upright(orientation: int, kind: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(AS_STORED[orientation]))
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "TIFF-lzw": {"compression": "tiff_lzw"}}.get(kind, {"quality": 100})
    if kind == "MPO":  # as telephones write JPEG: a second, smaller picture in the same file
        options |= {"save_all": True, "append_images": [stored.resize((4, 4))]}
    if kind == "JPEG":
        options["subsampling"] = 0
    data = encoded(stored, kind.partition("-")[0], exif=exif(orientation), **options)
    seen = decode(data)
    assert seen.shape == PHOTO.shape and codec.size(data) == (24, 16)
    if kind in ("PNG", "WEBP", "TIFF", "TIFF-lzw"):
        assert np.array_equal(seen, PHOTO) and pixel_hash(seen) == pixel_hash(PHOTO)
    else:
        wrong = [np.abs(other.astype(int) - seen).mean() for other in AS_STORED.values() if other.shape == seen.shape]
        assert np.abs(seen.astype(int) - PHOTO).mean() == min(wrong)
    assert np.array_equal(decode(data, (8, 8)), decode(encoded(Image.fromarray(seen)), (8, 8)))  # turned first, then scaled


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "1", "I;16"])
def test_other_kinds_of_pixels_are_turned_too(mode: str) -> None:
    upright = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        upright = Image.fromarray(np.asarray(upright).astype(np.uint16) * 256)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(decode(encoded(stored, exif=exif(6))), decode(encoded(upright)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_broken_exif_block_is_no_orientation(kind: str) -> None:
    upright = decode(encoded(NOISE, kind))
    good = exif(6)
    text = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", 0x0112, 2, 2, b"6") + bytes(4)
    blocks = [good[:10], b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"nonsense", RNG.bytes(60), text]
    for block in [*blocks, exif(0), exif(9), exif(65535)]:
        data = encoded(NOISE, kind, exif=block)
        assert np.array_equal(decode(data), upright) and codec.size(data) == (64, 64)
    for end in range(1, len(good)):
        assert decode(encoded(NOISE, kind, exif=good[:end])).shape == (64, 64, 3)


def test_a_block_whose_other_tags_are_broken_still_tells_the_orientation() -> None:
    wrong = struct.pack("<HHI4s", 0x011A, 5, 1, b"\xff\xff\xff\x7f")  # a fraction that lies outside of the block
    block = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 0x0112, 3, 1, 6) + wrong + bytes(4)
    stored = Image.fromarray(np.ascontiguousarray(AS_STORED[6]))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(decode(encoded(stored, kind, exif=block, **options)), PHOTO)


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
    pixels, mask = drawn_shapes.draw(0, "train", 3)
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


# --- folders, shapes, downloads, and what is none of these


def picture_files(root: Path, *names: str) -> str:
    """Pictures that tell their place in the list; gives the source's name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture(number)))
    return f"folder:{root}"


def test_folder(tmp_path: Path) -> None:
    spec = picture_files(
        tmp_path, *(f"train/{name}" for name in ("dog/b.png", "cat/z.jpg", "cat/deep/a.png", "ant/1.webp")), "test/cat/only"
    )
    source = pickle.loads(pickle.dumps(open_images(spec)))
    assert source.classes == ("ant", "cat", "dog") and source.labels("train").tolist() == [0, 1, 1, 2] and source.notes == ()
    assert [(r.image_id, r.label, number_of(r.image)) for r in source.read("train", [3, 0, 1])] == [(3, 2, 0), (0, 0, 3), (1, 1, 2)]
    assert source.labels("test").tolist() == [1] and [number_of(r.image) for r in source.read("test", [0])] == [4]
    (tmp_path / "train" / "ant" / "2.png").write_bytes(b"more")
    assert open_images(spec).fingerprint("train") != source.fingerprint("train")


@pytest.mark.parametrize(
    "names", ["Train Test", "TRAIN TEST", "training testing", "training_set test_set", "train val", "Training Validation"]
)
def test_usual_spellings_of_splits(tmp_path: Path, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = names.split()
    spec = picture_files(tmp_path, f"{train}/cat/0.png", f"{train}/dog/1.png", f"{test}/dog/2.png")
    source = open_images(spec)
    assert source.classes == ("cat", "dog") and source.labels("train").tolist() == [0, 1] and source.labels("test").tolist() == [1]
    assert [number_of(r.image) for r in source.read("test", [0])] == [2]
    tell(source)
    assert capsys.readouterr().err == f"note: {spec}: the train split is {train}, the test split is {test}\n"


def test_validation_beside_train_and_test_is_not_used_and_that_is_told(tmp_path: Path) -> None:
    source = open_images(picture_files(tmp_path, "train/cat/0.png", "test/cat/1.png", "valid/cat/2.png", "unlabeled/3.png"))
    assert [len(source.labels("train")), len(source.labels("test"))] == [1, 1]
    assert source.notes == (f"{source}: the train split is train, the test split is test; not used: unlabeled, valid",)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("Train/cat/0.png train/cat/1.png", "holds Train, train, each of which may be the train split"),
        ("train/cat/0.png training/cat/1.png test/cat/2.png", "holds train, training, each of which"),
        ("train/cat/0.png val/cat/1.png valid/cat/2.png", "holds val, valid, each of which may be the validation split"),
        ("seg_train/cat/0.png seg_test/cat/1.png seg_pred/2.png", "holds seg_pred, seg_test, seg_train: these look like splits"),
        ("train1/cat/0.png train2/cat/1.png", "holds train1, train2: these look like splits"),
        ("myTrain/cat/0.png", "holds myTrain: these look like splits"),
        ("Train/0.png Test/1.png", "holds Test, Train: these look like splits.*with a directory for each class"),
        ("train/0.png test/1.png extra/2.png", "these look like splits"),
        ("test/0.png", "holds test: these look like splits"),
        ("train/cat/0.png test1/cat/1.png", "holds train, which may be splits, beside test1"),
        ("train/cat/0.png holdings/cat/1.png", "holds train, which may be splits, beside holdings"),
        ("train/old/0.png bus/1.png car/2.png", "holds train, which may be splits, beside bus, car"),
        ("cat/train/0.png cat/test/1.png dog/train/2.png", "cat holds test, train: if these are splits"),
        ("data/train/cat/0.png data/test/cat/1.png", r"data holds test, train: if these are splits, name that directory \(folder:.*data\)"),
        ("photos/cat/0.png photos/dog/1.png", "photos would be the only class"),
        ("training_set/training_set/cat/0.png test_set/test_set/cat/1.png", "would be the only class"),
        ("train/images/0.png train/labels/0.png test/images/1.png", "would be the only class"),
        ("train/Cat/0.png test/cat/1.png", "class 'Cat' of the train split and class 'cat' of the test split"),
        ("train/polar bear/0.png test/polar_bear/1.png", "class 'polar bear' of the train split and class 'polar_bear' of the test"),
    ],
)
def test_a_folder_that_may_be_understood_in_two_ways_is_a_question(tmp_path: Path, names: str, words: str) -> None:
    spec = picture_files(tmp_path, *(name.strip() for name in re.split(r"(?<=png) ", names)))
    with pytest.raises(UserError, match=words) as caught:
        open_images(spec)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("names", ["train bus car", "valid invalid", "bullet_train test_tube bus", "test control", "A a"])
def test_classes_with_names_like_those_of_splits(tmp_path: Path, names: str) -> None:
    spec = picture_files(tmp_path, *(f"{name}/{i}.png" for name in names.split() for i in range(2)))
    assert open_images(spec).classes == tuple(sorted(names.split()))
    classes = tuple(sorted(name for name in names.split()))
    assert open_images(picture_files(tmp_path / "below", *(f"train/{name}/0.png" for name in classes))).classes == classes


def test_pictures_without_splits_are_split_by_a_rule_that_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{name}/{i:02d}.png" for name in ("cat", "dog") for i in range(20)]
    spec = picture_files(tmp_path / "a", *names)
    source = open_images(spec)
    found = {
        split: {r.name: number_of(r.image) for r in source.read(split, range(len(source.labels(split))))} for split in ("train", "test")
    }
    assert {**found["train"], **found["test"]} == {name: i for i, name in enumerate(names)} and not found["train"].keys() & found[
        "test"
    ].keys()
    assert np.bincount(source.labels("test")).tolist() == [4, 4] and np.bincount(source.labels("train")).tolist() == [16, 16]
    for _ in range(2):
        tell(open_images(spec))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "8 of the 40 pictures" in said and "test split" in said and str(tmp_path) in said

    def tested(root: str, *more: str) -> set[str]:
        source = open_images(picture_files(tmp_path / root, *names, *more))
        return {r.name for r in source.read("test", range(len(source.labels("test"))))}

    assert tested("elsewhere") == found["test"].keys()  # of their names alone
    grown = tested("grown", *(f"cat/new{i}.png" for i in range(5)))
    assert len(grown) == 9 and len(grown & found["test"].keys()) >= 6  # whoever stays has the same place in the draw
    assert len(open_images(picture_files(tmp_path / "one", "cat/0.png")).labels("train")) == 1


def test_what_tools_leave_behind_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = picture_files(tmp_path, "train/cat/0.png", "train/cat/1", "train/dog/2.JPEG", "train/dog/IMG.003", "test/dog/4.jpg")
    clean = open_images(spec)
    assert clean.notes == () and len(clean.labels("train")) == 4
    directories = [".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", ".git", "System Volume Information"]
    files = [".DS_Store", "._0.png", ".hidden.jpg", "Thumbs.db", "desktop.ini", "labels.txt", "meta.json", "0.png~", "0.png.part", "README"]
    for place in ("", "train", "train/cat", "train/cat/deep", "test/dog"):
        picture_files(tmp_path / place, *(f"{name}/copy.png" for name in directories), *files)
    source = open_images(spec)
    assert source.classes == ("cat", "dog")
    assert [r.name for r in source.read("train", range(len(source.labels("train"))))] == [r.name for r in clean.read("train", range(4))]
    assert source.fingerprint("train") == clean.fingerprint("train") and source.fingerprint("test") == clean.fingerprint("test")
    tell(source)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{5 * 17} files or directories" in said and "5 .DS_Store" in said
    (tmp_path / "stray.png").write_bytes(encoded(PIXELS))
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    assert any(f"{5 * 17 + 2} files" in note for note in open_images(spec).notes)


def test_what_is_left_out_beside_loose_pictures_is_counted(tmp_path: Path) -> None:
    picture_files(tmp_path, "b.png", "a.jpg", ".DS_Store", "notes.txt", "more/c.png")
    source = loose_pictures(tmp_path)
    assert [r.name for r in source.read("test", [0, 1])] == ["a.jpg", "b.png"]
    assert len(source.notes) == 1 and "3 files or directories" in source.notes[0] and "more/" in source.notes[0]


def test_a_class_whose_files_are_no_pictures_is_a_question(tmp_path: Path) -> None:
    spec = picture_files(tmp_path, "train/cat/0.png", "train/annotations/0.xml")
    with pytest.raises(UserError, match="train/annotations holds files but no pictures"):
        open_images(spec)


def test_photographs_in_a_format_that_is_not_read_are_not_left_out(tmp_path: Path) -> None:
    source = open_images(picture_files(tmp_path, "train/cat/0.png", "train/cat/1.HEIC"))
    assert source.notes == () and len(source.labels("train")) == 2


def test_links_inside_a_folder_are_followed(tmp_path: Path) -> None:
    spec = picture_files(tmp_path, ".pool/0.png", ".pool/1.png", ".pool/dogs/2.png", "train/cat/3.png", "test/cat/4.png")
    (tmp_path / "train" / "cat" / "z.png").symlink_to("../../.pool/0.png")
    (tmp_path / "train" / "dog").symlink_to(tmp_path / ".pool" / "dogs")
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    for name in (spec, f"{spec}-link"):
        source = open_images(name)
        assert [(r.label, number_of(r.image)) for r in source.read("train", range(3))] == [(0, 3), (0, 0), (1, 2)]


@pytest.mark.parametrize(
    ("link", "target", "words"),
    [
        ("train/cat/z.png", "nowhere.png", "z.png is a link to nowhere.png, where nothing is"),
        ("train/cow", "../nowhere", "cow is a link to ../nowhere, where nothing is"),
        ("train/cat/z.png", "z.png", "z.png is a link to z.png, where nothing is"),
        ("train/cat/up", "..", "are one directory"),
        ("train/cat/here", ".", "are one directory"),
        ("train/cow", "cat", "are one directory"),
        ("val", "test", "are one directory"),
        ("train/cat/z.png", "0.png", "train/cat/z.png and train/cat/0.png are one file"),
        ("train/dog/z.png", "../cat/0.png", "train/dog/z.png and train/cat/0.png are one file"),
        ("test/cat/z.png", "../../train/cat/0.png", "test/cat/z.png and train/cat/0.png are one file"),
    ],
)
def test_links_to_nothing_and_to_what_is_there_already_are_refused(tmp_path: Path, link: str, target: str, words: str) -> None:
    spec = picture_files(tmp_path, "train/cat/0.png", "train/dog/1.png", "test/cat/2.png")
    (tmp_path / link).symlink_to(target)
    with pytest.raises(UserError, match=words) as caught:
        open_images(spec)
    assert "\n" not in str(caught.value)


def test_a_hard_link_is_the_same_picture_twice(tmp_path: Path) -> None:
    spec = picture_files(tmp_path, "train/cat/0.png", "test/cat/1.png")
    (tmp_path / "test" / "cat" / "2.png").hardlink_to(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(UserError, match="test/cat/2.png and train/cat/0.png are one file"):
        open_images(spec)


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
        pixels, mask = drawn_shapes.draw(3, "train", record.image_id)
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
