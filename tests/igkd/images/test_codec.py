"""Decoding, turning and scaling pictures."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import center_crop, resize

from igkd.images import codec, drawn_shapes
from igkd.images.codec import BadImage, Interpolation, Scaling, decode, encode_png, pixel_hash, scale_mask
from tests.helpers.pictures import encoded, png_of_size

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


NOISE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7


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


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_in_which_zero_is_white_is_no_negative(bits: int) -> None:
    values = GREY.astype(np.uint16) * 256 + 99 if bits == 16 else GREY
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", tiffinfo={262: 0})
    expected = 255 - GREY if bits == 16 else GREY  # PIL inverts what it writes of 8 bits, and of 16 bits neither what it writes nor reads
    assert Image.open(io.BytesIO(buffer.getvalue())).tag_v2[262] == 0  # type: ignore[attr-defined]
    assert np.array_equal(decode(buffer.getvalue()), np.dstack([expected] * 3))
