"""Pictures, and the files that they are found in."""

import io
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import jobs  # noqa: F401  # sets what Ray reads when it is imported, by whichever test is the first to do so
from igkd.images import drawn_shapes
from igkd.images.codec import decode

BAD = (5, *range(14, 21))
"""Images of `parquet_images` that do not decode: one alone, and all seven of the third part."""
LABELS = np.random.default_rng(3).integers(0, 10, 34)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture's file in memory."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def write_parquet(
    path: Path | str,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    names: Sequence[str] | None = None,
    row_group: int = 4,
    columns: tuple[str, str] = ("img", "label"),
) -> Path:
    """A file as Hugging Face's datasets library writes it; with class names, its metadata too."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    structs = [{"bytes": image, "path": f"{number}.png"} for number, image in enumerate(images)]
    table = pa.table(
        {
            columns[0]: pa.array(structs, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            columns[1]: pa.array(labels, pa.int64()),
        }
    )
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=row_group)
    return Path(path)


def png_of_size(width: int, height: int) -> bytes:
    """A tiny PNG that claims to be this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def pictures(root: Path, split: str, count: int) -> str:
    """The built-in shapes as a folder, whose classes are in another order than theirs."""
    for i in range(count):
        path = root / split / drawn_shapes.CLASSES[drawn_shapes.label(i)] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(drawn_shapes.draw(0, "test", i)[0]))
    return f"folder:{root}"


def picture(number: int) -> np.ndarray:
    """A picture that tells its number."""
    return np.full((4, 4, 3), (number % 256, number // 256, 77), np.uint8)


def number_of(image: bytes) -> int:
    """The number that a file of `picture` tells."""
    red, green, _ = decode(image)[0, 0].tolist()
    return int(red + 256 * green)


def pngs(count: int, first: int = 0) -> list[bytes]:
    """Files of the pictures of consecutive numbers."""
    return [encoded(picture(i)) for i in range(first, first + count)]
