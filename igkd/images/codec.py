"""Decoding, scaling and encoding of pictures, and the hash that identifies one."""

import hashlib
import io
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "TGA", "QOI")
"""The formats read. PIL's other readers are not for photographs, and its EPS reader runs an external program on the file."""
MAX_BYTES = 256 << 20
"""Largest encoded picture, in bytes."""
MAX_PIXELS = 1 << 26
"""Most pixels of a picture, before or while it is scaled: 200 MB decoded."""


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns a picture upright, by its EXIF orientation; with orientation 1 or none it is upright already."""

Interpolation = Literal["nearest", "bilinear", "bicubic"]
"""Names of PIL's resampling filters, in lower case."""


@dataclass(frozen=True)
class Scaling:
    """How a picture is brought to a network's size (H, W): scaled, then cropped around its centre."""

    short_side: int = 0
    """Pixels that the shorter side is scaled to before the crop; 0: the picture is scaled until it just covers (H, W)."""
    interpolation: Interpolation = "bicubic"


FILL = Scaling()


class BadImage(ValueError):
    """An image cannot be used; the message says why, as the end of a sentence that begins with the image."""


def decode(image: bytes, shape: tuple[int, int] | None = None, scaling: Scaling = FILL) -> NDArray[np.uint8]:
    """Decode to uint8 (H, W, 3) RGB, turned upright as the picture's EXIF orientation says.

    Args:
        image: encoded picture.
        shape: (H, W) to scale and centre-crop to; None keeps the picture's own size.
        scaling: how to scale. With a `short_side`, even pictures that have the right shape are scaled, as torchvision does.

    Raises:
        BadImage: the picture does not decode, or is so long and narrow that scaling it would take too much memory.
    """
    if not image:
        raise BadImage("has no bytes")
    if len(image) > MAX_BYTES:
        raise BadImage(f"does not decode (it has more than {MAX_BYTES >> 20} MiB)")
    try:
        # PIL warns about harmless damage, for example in an EXIF block, without naming the picture: such warnings help nobody.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels are more than {MAX_PIXELS:,}: perhaps a decompression bomb")
            picture = _upright(_eight_bits(opened).convert("RGB"), opened)
    except UnidentifiedImageError:
        raise BadImage("does not decode (not a picture in a format PIL reads)") from None
    except Exception as error:  # on malformed bytes, PIL's readers raise exceptions of any type
        raise BadImage(f"does not decode ({str(error) or type(error).__name__})") from None
    return np.asarray(picture if shape is None else _scaled(picture, shape, scaling))


def scale_mask(mask: NDArray[np.bool_], shape: tuple[int, int], scaling: Scaling) -> NDArray[np.bool_]:
    """Scale and crop a picture's mask, bool (H, W), as `decode` does the picture; gives bool of `shape`."""
    return np.asarray(_scaled(Image.fromarray(mask.astype(np.uint8)), shape, replace(scaling, interpolation="nearest"))).astype(np.bool_)


def _scaled(picture: Image.Image, shape: tuple[int, int], scaling: Scaling) -> Image.Image:
    """The picture scaled and cropped to (H, W). With a short side it equals torchvision's ImageClassification transform."""
    filter, (height, width) = Image.Resampling[scaling.interpolation.upper()], shape
    if not scaling.short_side:
        return picture if (picture.height, picture.width) == shape else ImageOps.fit(picture, (width, height), filter)
    short, long = sorted(picture.size)
    longer = int(scaling.short_side * long / short)
    if scaling.short_side * longer > MAX_PIXELS:
        raise BadImage(
            f"is too long and narrow ({picture.height}x{picture.width} pixels, height x width): scaled to {scaling.short_side} pixels "
            f"along its shorter side, it would have more than {MAX_PIXELS:,}"
        )
    wide = picture.width > picture.height
    picture = picture.resize((longer, scaling.short_side) if wide else (scaling.short_side, longer), filter)
    top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
    return picture.crop((left, top, left + width, top + height))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Reduce 16-bit greyscale to its upper 8 bits, as PIL does for 16-bit colour; PIL's own conversion of greyscale clips it to white. Of
    a TIFF in which 0 is white, PIL turns round 8 bits, but not 16."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        values = (np.asarray(picture).astype(np.int64) >> 8).astype(np.uint8)
        negative = isinstance(picture, TiffImageFile) and picture.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0
        return Image.fromarray(255 - values if negative else values)
    if picture.mode in ("I", "F"):
        raise ValueError("greyscale of 32 bits, which has no fixed white; convert it to 8 bits")
    return picture


def _upright(picture: Image.Image, opened: Image.Image) -> Image.Image:
    """The picture turned upright by its EXIF orientation.

    PIL's own `exif_transpose` also rewrites the EXIF block, which fails if the block is damaged; this only reads it.

    Args:
        picture: the pixels of `opened`.
        opened: the file, already loaded: PIL turns a TIFF upright itself while loading and then reports no orientation.
    """
    try:
        turn = TURNS.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on a malformed EXIF block, PIL raises exceptions of any type; the picture is then taken as upright
        turn = None
    return picture if turn is None else picture.transpose(turn)


def size(image: bytes) -> tuple[int, int]:
    """(height, width) in pixels of an encoded picture after `decode`.

    Raises:
        BadImage: the picture does not decode.
    """
    height, width, _ = decode(image).shape
    return height, width


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 (H, W, 3) to PNG bytes, lossless and deterministic."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def pixel_hash(pixels: NDArray[np.uint8]) -> bytes:
    """16 bytes, a BLAKE2b hash of shape and pixels: identifies a picture independently of its encoding."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()
