"""Parquet files that anyone may have made: what they would take in memory is known before they are decoded.

A column that repeats one value is a few bytes in the file and as large as one likes in memory.
"""

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MOST = 2 << 30
"""Bytes in memory of one row group of what is read: far above those that writers make, and what a small machine has."""
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 8}


class TooLarge(ValueError):
    """A file that would take more memory than any of its kind has a reason to; the message says how much."""


def check_group(file: pq.ParquetFile, group: int, columns: Collection[str] | None = None) -> None:
    """Refuse a row group that is too large, by what the file says of itself; reads nothing of it.

    Texts and pictures are counted once, however often the group repeats them: `check_repeats` is about that.

    Args:
        columns: only these, by the name of the column or of a field of it (`image.bytes`); None for all.

    Raises:
        TooLarge: the group would take more than `MOST` bytes.
    """
    size = 0
    for leaf in range(file.metadata.num_columns):
        chunk = file.metadata.row_group(group).column(leaf)
        name = chunk.path_in_schema
        if columns is None or any(name == column or name.startswith(f"{column}.") for column in columns):
            width = WIDTHS.get(chunk.physical_type) or file.schema.column(leaf).length
            size += max(chunk.num_values * width, chunk.total_uncompressed_size)
    if size > MOST:
        raise TooLarge(f"its row group {group} would take {size / 2**30:,.1f} GiB in memory, more than the {MOST >> 30} that are allowed")


def check_repeats(column: pa.ChunkedArray) -> None:
    """Refuse a dictionary-encoded column of bytes whose values, each written out, are too large.

    Raises:
        TooLarge: they would take more than `MOST` bytes.
    """
    size = sum((pc.sum(pc.binary_length(c.dictionary).take(c.indices)).as_py() or 0) for c in column.chunks)
    if size > MOST:
        raise TooLarge(f"its pictures would take {size / 2**30:,.1f} GiB in memory, more than the {MOST >> 30} that are allowed")
