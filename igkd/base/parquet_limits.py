"""Limits on the memory that a Parquet file from an unknown author may take, checked before it is decoded.

A column that repeats one value takes a few bytes in the file, but can be made arbitrarily large in memory.

No thread of pyarrow's may hold what is Python's: one that lets go of bytes or of a file while Python ends aborts the process ("terminate
called without an active exception", pyarrow 26.0; seen in `igkd store verify` after its last line). So all
files are read with `use_threads=False`, and local ones are opened by pyarrow (`storage.open_ranges`).
"""

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MOST = 2 << 30
"""Largest size in memory of one row group, in bytes: far more than usual writers produce, and no more than a small machine has."""
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 8}
"""Bytes in memory of one value, by Parquet's physical type; of a byte array only its offset is counted."""


class TooLarge(ValueError):
    """The file would take more memory than `MOST`; the message says how much."""


def check_group(file: pq.ParquetFile, group: int, columns: Collection[str] | None = None) -> None:
    """Refuse a row group that would be too large in memory, judged by the file's metadata alone.

    Values of variable length (texts, pictures) count once, even if the group repeats them; `check_repeats` finds such repetition.

    Args:
        columns: names of the columns to count, or of fields in them (`image.bytes`); None counts all.

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
    """Refuse a dictionary-encoded column of bytes that would be too large once each row holds its own copy of its value.

    Raises:
        TooLarge: the copies would take more than `MOST` bytes.
    """
    size = sum((pc.sum(pc.binary_length(c.dictionary).take(c.indices)).as_py() or 0) for c in column.chunks)
    if size > MOST:
        raise TooLarge(f"its pictures would take {size / 2**30:,.1f} GiB in memory, more than the {MOST >> 30} that are allowed")
