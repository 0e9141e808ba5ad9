"""Files of a stranger that would fill the memory: refused before they do."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  # registers Arrow types of its own, as in every job
from PIL import Image

from igkd.images.codec import BadImage, decode
from igkd.images.open import open_images
from igkd.store import Store, part_name
from tests.helpers.pictures import png_of_size
from tests.helpers.strangers import refused, replace_part

READ = "from igkd.images.codec import decode; from igkd.images.open import open_images"


LIMIT = 3 << 30


"""Bytes of memory in the test of a bomb, of which Python, torch and pyarrow take one: half of what the smallest bomb takes."""


def bounded(code: str, *arguments: str) -> str:
    """Run Python code in a process that is killed, so to speak, where it takes more; gives its output, with its peak in MiB last."""
    program = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT}))\n"
        "from igkd.base.errors import UserError\n"
        f"try:\n    {code}\n    print('read')\nexcept (UserError, ValueError) as error:\n    print(error)\n"
        "print(next(int(line.split()[1]) >> 10 for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *said, peak = done.stdout.splitlines()
    assert int(peak) < 2000, peak
    return "\n".join(said)


def label_bomb(path: Path) -> None:
    """67 million labels, all alike: 0.4 MB."""
    count = 1 << 22
    image = pa.StructArray.from_arrays([pa.nulls(count, pa.binary()), pa.nulls(count, pa.string())], ["bytes", "path"])
    table = pa.table({"img": image, "label": pa.array(np.zeros(count, np.int64))})
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(16):
            writer.write_table(table, row_group_size=count)


def repeated(count: int, size: int) -> pa.DictionaryArray:
    """A value of `size` bytes, `count` times, for the memory of one."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([bytes(size)], pa.binary()))


def picture_bomb(path: Path, count: int = 1000, size: int = 16 << 20) -> None:
    """A picture of 16 MB, a thousand times: some kilobytes."""
    image = pa.StructArray.from_arrays([repeated(count, size), pa.array(["a"] * count)], ["bytes", "path"])
    table = pa.table({"img": image, "label": pa.array([0] * count)})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, write_statistics=False, store_schema=False)


BOMBS = {"labels": (label_bomb, "claims 67,108,864 pictures in"), "repeats": (picture_bomb, "its pictures would take 15.6 GiB")}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_parquet_bomb_of_pictures(kind: str, tmp_path: Path) -> None:
    make, words = BOMBS[kind]
    make(tmp_path / "train-0.parquet")
    assert (tmp_path / "train-0.parquet").stat().st_size < 1_000_000
    read = f"{READ}; source = open_images('parquet:' + sys.argv[1]); source.labels('train'); list(source.read('train', range(1000)))"
    said = bounded(read, str(tmp_path))
    assert "is refused: " in said and words in said, said


def test_a_parquet_bomb_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve pictures of 8 MB of zeros, where 64 MB are the most."""
    monkeypatch.setattr("igkd.base.parquet_limits.MOST", 64 << 20)
    image = pa.StructArray.from_arrays([pa.array([bytes(8 << 20)]), pa.array(["a"])], ["bytes", "path"])
    table = pa.table({"img": pa.chunked_array([image] * 12), "label": pa.array([0] * 12)})
    pq.write_table(table, tmp_path / "train-0.parquet", compression="zstd", use_dictionary=False, write_statistics=False)
    assert (tmp_path / "train-0.parquet").stat().st_size < 50_000
    refused(lambda: list(open_images(f"parquet:{tmp_path}").read("train", [3])), "is refused: its row group 0 would take 0.1 GiB")


def test_a_parquet_bomb_for_a_part_of_a_store(finished: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igkd.base.parquet_limits.MOST", 64 << 20)
    copy = Path(shutil.copytree(finished, tmp_path / "store"))
    table = pq.read_table(copy / part_name(0))
    place, field = table.schema.get_field_index("image"), table.schema.field("image")
    big = pa.chunked_array([pa.array([bytes(12 << 20)])] * len(table))
    for dictionary, words in ((True, "its pictures would take 0.1 GiB"), (False, "row group 0 would take 0.1 GiB")):
        options = {"use_dictionary": dictionary, "dictionary_pagesize_limit": 1 << 30, "write_statistics": False}
        replace_part(copy, table.set_column(place, field, big), compression="zstd", **options)
        assert (copy / part_name(0)).stat().st_size < 100_000
        refused(Store.open(str(copy)).samples, words)
    replace_part(copy, pa.concat_tables([table] * 2), compression="zstd")
    for read in (Store.open(str(copy)).samples, lambda: Store.open(str(copy)).column("label")):
        refused(read, "it has 12 rows in 1 groups where 7 rows are the most")


@pytest.mark.parametrize(("kind", "side"), [("PNG", 8200), ("PNG", 60_000), ("TIFF", 8200), ("GIF", 8200)])
def test_a_picture_bomb(kind: str, side: int, tmp_path: Path) -> None:
    """A white square, whose size is not known before its header is read."""
    path = tmp_path / "cat" / "a.img"
    path.parent.mkdir()
    if side > 10_000:
        path.write_bytes(png_of_size(side, side))
    else:
        Image.new("1", (side, side)).save(path, kind, **({"compression": "group4"} if kind == "TIFF" else {}))
    assert path.stat().st_size < 500_000
    for given in (None, (32, 32)):
        with pytest.raises(BadImage, match="bomb"):
            decode(path.read_bytes(), given)


def test_a_file_of_terabytes_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with (tmp_path / "cat" / "a.png").open("wb") as file:
        file.truncate(4 << 40)  # holes: nothing of it is on the disk
    said = bounded(f"{READ}; decode(next(open_images('folder:' + sys.argv[1]).read('train', [0])).image)", str(tmp_path))
    assert said == "does not decode (it has more than 256 MiB)"
