"""Files of a stranger: nothing in them runs, nothing outside is read or written, memory stays bounded, and what is said is one sentence."""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  # registers Arrow types of its own, as in every job
import torch
from PIL import Image

from igkd import store
from igkd.base import run_directory
from igkd.base.errors import UserError, run_cli
from igkd.base.storage import filesystem, read_json
from igkd.config.distill import DistillConfig
from igkd.config.recipes import recipe_values
from igkd.config.teacher import TeacherConfig
from igkd.images.codec import BadImage, decode
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build
from igkd.networks.open import open_teacher
from igkd.store import Store, part_name
from igkd.store.__main__ import main as store_program
from igkd.sweeps.__main__ import main as sweeps_program
from igkd.sweeps.ledger import Status, describe, read_rows, read_status
from igkd.sweeps.publish import publish
from igkd.training.optimizer import make_optimizer
from igkd.training.state import History, load_state, read_history, save_state
from tests.helpers.pages import HOSTILE, Page
from tests.helpers.pictures import encoded, png_of_size

SPEC = NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name="mobilenet:cut=15,width=0.1")
PIXELS = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def payload(tmp_path: Path) -> Any:
    """A pickle that makes a file when it is loaded; the test fails if that file is there at its end."""
    marker = tmp_path / "it ran"

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(marker),)

    pickle.loads(pickle.dumps(Payload()))
    assert marker.exists()  # so it would be seen
    marker.rmdir()
    yield Payload()
    assert not marker.exists()


def refused(read: Callable[[], object], words: str = ".") -> None:
    """It ends with one sentence that says what to do, and soon."""
    with pytest.raises(UserError, match=words) as caught:
        read()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


# --- what would run


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_pickle_for_a_checkpoint(name: str, payload: Any, tmp_path: Path) -> None:
    checkpoint.save(build(SPEC, 0), tmp_path, {})
    for data in (pickle.dumps(payload), torch_file(payload, tmp_path)):
        if name == "model.safetensors":
            card = json.loads((tmp_path / "model.json").read_bytes())
            (tmp_path / "model.json").write_text(json.dumps(card | {"sha256": hashlib.sha256(data).hexdigest()}))
        (tmp_path / name).write_bytes(data)
        refused(lambda: checkpoint.load(tmp_path), "is not (a checkpoint of this project|JSON)")


def torch_file(payload: Any, directory: Path) -> bytes:
    torch.save({"weights": payload}, directory / "torch.pt")
    return (directory / "torch.pt").read_bytes()


def test_a_pickle_for_the_state_of_a_run(payload: Any, tmp_path: Path) -> None:
    model = build(SPEC, 0)
    optimizer = make_optimizer(model, TeacherConfig(images="shapes", out="").optimisation)
    for data in (pickle.dumps(payload), torch_file(payload, tmp_path)):
        (tmp_path / run_directory.STATE).write_bytes(data)
        refused(lambda: load_state(tmp_path, model, optimizer), "cannot be read .*delete it to begin that run anew")


def test_a_pickle_where_torchvision_keeps_its_weights(payload: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    kept.parent.mkdir(parents=True)
    for data in (torch_file(payload, tmp_path), pickle.dumps(payload)):
        kept.write_bytes(data)
        refused(lambda: open_teacher("torchvision:squeezenet1_1"), "is not torchvision's.*delete it")


def test_a_pickle_where_torchvision_keeps_cifar10(payload: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGKD_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (tmp_path / "cifar-10-batches-py").mkdir(exist_ok=True)
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(payload))
    refused(lambda: open_images("cifar10").labels("train"), "could not be downloaded")


def pickled_objects(payload: Any, kind: pa.DataType) -> tuple[pa.Array, dict[bytes, bytes]]:
    """A column that Ray's Arrow types unpickle, and its field's metadata."""
    metadata = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    return pa.array([pickle.dumps(payload)] * 3, kind), metadata


@pytest.mark.parametrize("place", ["bytes", "path", "other", "label", "image", "shape"])
def test_a_pickle_in_a_column_of_pictures(place: str, payload: Any, tmp_path: Path) -> None:
    column, metadata = pickled_objects(payload, pa.large_binary())
    sound = {"bytes": pa.array([encoded(PIXELS)] * 3), "path": pa.array(["a", "b", "c"])}
    children = {name: pa.field(name, array.type) for name, array in sound.items()}
    if place in ("bytes", "path", "other"):
        sound[place], children[place] = column, pa.field(place, column.type, metadata=metadata)
    image = pa.StructArray.from_arrays(list(sound.values()), fields=list(children.values()))
    columns = {"img": image, "label": pa.array([0, 1, 0])}
    fields = {name: pa.field(name, array.type) for name, array in columns.items()}
    if place in ("label", "image"):
        name = "img" if place == "image" else place
        columns[name], fields[name] = column, pa.field(name, column.type, metadata=metadata)
    if place == "shape":  # Ray's tensors have their shape in metadata, which Ray 2.49 to 2.54 unpickled as soon as a file was opened
        tensor = {b"ARROW:extension:name": b"ray.data.arrow_tensor", b"ARROW:extension:metadata": pickle.dumps(payload)}
        columns["more"] = pa.array([[1]] * 3)
        fields["more"] = pa.field("more", columns["more"].type, metadata=tensor)
    path = tmp_path / "train-0.parquet"
    pq.write_table(pa.table(list(columns.values()), pa.schema(list(fields.values()))), path)

    def read() -> None:
        source = open_images(f"parquet:{path}")
        source.checked_labels("train")
        assert [decode(record.image).shape for record in source.read("train", [0, 2])] == [(8, 8, 3)] * 2

    read() if place == "other" else refused(read)  # a field that nobody asks for is not read


@pytest.mark.parametrize("name", ["label", "validation", "image", "ig"])
def test_a_pickle_in_a_column_of_a_store(name: str, payload: Any, finished: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "store"))
    table = pq.read_table(copy / part_name(0))
    column, metadata = pickled_objects(payload, pa.large_binary())
    column = pa.array([column[0].as_py()] * len(table), pa.large_binary())
    place = table.schema.get_field_index(name)
    replace_part(copy, table.set_column(place, pa.field(name, column.type, metadata=metadata), column))
    for read in (Store.open(str(copy)).samples, lambda: Store.open(str(copy)).column(name), lambda: store.describe(str(copy))):
        refused(read, "does not have the store's columns")
    assert any("does not have the store's columns" in problem for problem in store.verify(str(copy)))


def replace_part(directory: Path, table: pa.Table, **options: Any) -> None:
    """Make a table the first part, with a manifest that says so."""
    path = directory / part_name(0)
    pq.write_table(table, path, write_page_checksum=True, **options)
    manifest = json.loads((directory / "manifest.json").read_bytes())
    data = path.read_bytes()
    manifest["files"][0] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_a_picture_that_is_a_program() -> None:
    for kind in ("EPS", "PDF", "XBM"):
        data = encoded(Image.fromarray(PIXELS).convert("1" if kind == "XBM" else "RGB"), kind)
        with pytest.raises(BadImage, match="not a picture"):
            decode(data)


# --- safetensors


def tensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(dtype: str = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BYTES = b"\0" * 16
HEADERS = {
    "empty": b"",
    "length of exabytes": struct.pack("<Q", 1 << 62) + b"{}",
    "length of gigabytes": struct.pack("<Q", 8 << 30) + b"{}",
    "outside the file": tensors({"a": one(offsets=(0, 1 << 40))}, BYTES),
    "backwards": tensors({"a": one(offsets=(16, 0))}, BYTES),
    "negative": tensors({"a": one(shape=(-4,))}, BYTES),
    "overlap": tensors({"a": one(), "b": one()}, BYTES),
    "hole": tensors({"a": one(shape=(2,), offsets=(8, 16))}, BYTES),
    "the same name twice": tensors(b'{"a":%s,"a":%s}' % ((json.dumps(one()).encode(),) * 2), BYTES),
    "a product that overflows": tensors({"a": one(shape=(1 << 32,) * 3)}, BYTES),
    "exa by zero": tensors({"a": one(shape=(1 << 62, 0), offsets=(0, 0))}),
    "no such type": tensors({"a": one("PICKLE")}, BYTES),
    "type that torch has not": tensors({"a": one("F4", (4,), (0, 2))}, b"\0\0"),
    "nested": tensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "no text": tensors(b"\xff\xfe"),
    "a list": tensors([1]),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_lies(kind: str, tmp_path: Path) -> None:
    checkpoint.save(build(SPEC, 0), tmp_path, {})
    card = json.loads((tmp_path / "model.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(HEADERS[kind])
    (tmp_path / "model.json").write_text(json.dumps(card | {"sha256": hashlib.sha256(HEADERS[kind]).hexdigest()}))
    refused(lambda: checkpoint.load(tmp_path), "is not a checkpoint of this project")
    (tmp_path / run_directory.STATE).write_bytes(HEADERS[kind])
    refused(lambda: read_history(tmp_path), "cannot be read .*delete it")


def changed(card: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return card | {"spec": card["spec"] | spec}


CARDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "as wide as memory": lambda card: changed(card, name="mobilenet:width=99.9999"),
    "wider than any": lambda card: changed(card, name="mobilenet:width=1e300"),
    "not a number": lambda card: changed(card, name="mobilenet:width=nan"),
    "a million classes": lambda card: changed(card, classes=["x"] * 1_000_000),
    "classes that are numbers": lambda card: changed(card, classes=[1, 2, 3]),
    "a picture of terabytes": lambda card: changed(card, image_shape=[1 << 20, 1 << 20]),
    "no picture": lambda card: changed(card, image_shape=[0, -1]),
    "stride": lambda card: changed(card, name="mobilenet:stride=0"),
    "mean": lambda card: changed(card, mean=[0.0] * 100_000),
    "std": lambda card: changed(card, std=[0.0, 1.0, 1.0]),
    "cut": lambda card: changed(card, name=True),
    "spec": lambda card: card | {"spec": [1]},
    "made": lambda card: card | {"made": [1]},
    "hash": lambda card: card | {"sha256": ["x"]},
}


@pytest.mark.parametrize("kind", CARDS)
def test_a_card_that_lies(kind: str, tmp_path: Path) -> None:
    checkpoint.save(build(SPEC, 0), tmp_path, {})
    card = CARDS[kind](json.loads((tmp_path / "model.json").read_bytes()))
    (tmp_path / "model.json").write_text(json.dumps(card))
    refused(lambda: checkpoint.load(tmp_path))


def history(epochs: int = 2) -> History:
    return [{"epoch": n + 1, "validation_accuracy": 0.5, "seconds": 1.0} for n in range(epochs)]


@pytest.mark.parametrize("kind", ["tensors", "optimizer", "parameter", "history", "nested"])
def test_a_state_of_something_else(kind: str, tmp_path: Path) -> None:
    model, recipe = build(SPEC, 0), TeacherConfig(images="shapes", out="").optimisation
    optimizer = make_optimizer(model, recipe)
    save_state(tmp_path, model, optimizer, history())
    assert load_state(tmp_path, model, optimizer) == history()
    found = safetensors_of(tmp_path / run_directory.STATE)
    text = json.dumps(history())
    if kind == "tensors":
        found["model.network.classifier.bias"] = torch.zeros(9)
    elif kind == "optimizer":
        found["optimizer.0.momentum_buffer"] = torch.zeros(77)
    elif kind == "parameter":
        found["optimizer.9999.momentum_buffer"] = torch.zeros(())
    else:
        text = "[1, 2]" if kind == "history" else "[" * 100_000
    write_safetensors(tmp_path / run_directory.STATE, found, text)
    refused(lambda: load_state(tmp_path, model, optimizer), "cannot be read .*delete it")


def safetensors_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def write_safetensors(path: Path, found: dict[str, torch.Tensor], text: str) -> None:
    from safetensors.torch import save_file

    save_file(found, path, metadata={"history": text})


# --- what would fill the memory

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


# --- what would lead outside


def test_a_link_out_of_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(encoded(PIXELS))
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "a.png").write_bytes(encoded(PIXELS))
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret.png").write_bytes(encoded(PIXELS))
    pq.write_table(pa.table({"img": [{"bytes": encoded(PIXELS), "path": "a"}], "label": [0]}), private / "train-0.parquet")
    for place, target in (
        ("cat/c.png", "../../private/secret.png"),  # a file, a class, what is deep in a class, a split, a link to a link
        ("dog", private),
        ("cat/deep/more", private),
        ("train", private),
        ("cat/d.png", "e.png"),
    ):
        link = tmp_path / "set" / place
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
        if target == "e.png":
            (tmp_path / "set" / "cat" / "e.png").symlink_to(private / "secret.png")
        refused(lambda: open_images(f"folder:{tmp_path / 'set'}"), "is a link to .*private.*, outside of .* put a copy there")
        for made in (link, tmp_path / "set" / "cat" / "e.png"):
            made.unlink(missing_ok=True)
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet" / "train-0.parquet").symlink_to(private / "train-0.parquet")
    refused(
        lambda: open_images(f"parquet:{tmp_path / 'parquet'}"), "train-0.parquet is a link to .*private.*, outside of .* put a copy there"
    )


PLANS: dict[str, dict[str, Any]] = {
    "no rows a file": {"rows_per_file": 0},
    "a quadrillion files": {"rows": 10**15, "rows_per_file": 1},
    "half a row": {"rows": 34.0},
    "pictures of terabytes": {"image_shape": [1 << 20, 1 << 20]},
    "three sides": {"image_shape": [1, 1, 1]},
    "no type": {"precision": "pickle"},
    "no layer": {"attention_layer": "../../x"},
    "classes": {"classes": "abc"},
    "not a number": {"short_side": float("nan")},
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_that_lies(kind: str, finished: str, tmp_path: Path) -> None:
    manifest = json.loads(Path(finished, "manifest.json").read_bytes())
    manifest["plan"] |= PLANS[kind]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    refused(lambda: Store.open(str(tmp_path)), "manifest.json is damaged or not ours")


def test_a_part_is_never_anywhere_else(finished: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "store"))
    manifest = json.loads((copy / "manifest.json").read_bytes())
    shutil.move(copy / part_name(0), tmp_path / part_name(0))
    for name in (f"../{part_name(0)}", str(tmp_path / part_name(0)), f"./{part_name(0)}"):
        manifest["files"][0]["name"] = name
        (copy / "manifest.json").write_text(json.dumps(manifest))
        refused(lambda: Store.open(str(copy)), "does not list the 5 parts")


SWEEP = Status(command=f"python -m jobs.ablate {HOSTILE}", planned=[], total=4, slots=1, began=0.0, phase="stopped")


def result(**changes: Any) -> dict[str, Any]:
    row = {
        "job": "distill",
        "name": "kd",
        "arm": "kd",
        "network": "mobilenet:cut=5",
        "seed": 0,
        "share": 1.0,
        "state": "done",
        "history": history(1),
    }
    row |= {"test": {"accuracy": 0.5, "correct": 5, "count": 10}, "parameters": 7, "multiply_adds": 7, "compression": 4.0, "images": {}}
    return row | {"config": {"store": "", "teacher": None}, "provenance": {"versions": {}}} | changes


def sweep(root: Path, status: Any = None, **rows: Any) -> Path:
    """The directory of a sweep with these results."""
    for name, row in rows.items():
        (root / "students" / name).mkdir(parents=True)
        (root / "students" / name / "result.json").write_text(json.dumps(row))
    root.mkdir(exist_ok=True)
    (root / "status.json").write_text(json.dumps(dataclasses.asdict(SWEEP) if status is None else status))
    return root


@pytest.mark.parametrize("page", ["../../stolen.html", "/tmp/stolen.html", "a/b.html", "..", "", "rows.jsonl", 7])
def test_a_report_is_written_where_it_belongs(page: Any, tmp_path: Path) -> None:
    root = sweep(tmp_path / "out", dataclasses.asdict(SWEEP) | {"page": page})
    refused(lambda: publish(root), "is not of a sweep of this version")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "status.json"]


def test_a_report_does_not_write_through_links(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("mine")
    root = sweep(tmp_path / "out")
    for name in ("report.html", "table.md"):
        (root / name).symlink_to(private)
    publish(root)
    assert private.read_text() == "mine" and "0 of 4 runs done" in (root / "report.html").read_text()


def test_a_row_cannot_say_that_it_is_elsewhere(tmp_path: Path) -> None:
    [row] = read_rows(sweep(tmp_path, mine=result(cell="../../elsewhere")))
    assert row["cell"] == "mine"


def test_a_report_escapes_what_strangers_wrote(finished: str, tmp_path: Path) -> None:
    config = {"store": finished, "teacher": None, HOSTILE: HOSTILE}
    source = {"command": HOSTILE, "commit": HOSTILE, "machine": HOSTILE, "started": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    names = {"name": HOSTILE, "arm": HOSTILE, "recipe": HOSTILE, "content": HOSTILE, "job": HOSTILE}
    failures = {HOSTILE: {"tries": 3, "error": HOSTILE}}
    rows = {f"<img src=x onerror=alert({n})>": result(**names, config=config, provenance=source, seed=n) for n in range(2)}
    root = sweep(tmp_path / "out", dataclasses.asdict(SWEEP) | {"failures": failures}, **rows)
    for name in rows:
        checkpoint.save(build(SPEC, 0), root / "students" / name, {})
    publish(root)
    page = Page((root / "report.html").read_text())
    assert page.text.count('<script>alert("x")</script>') >= 8
    assert not {"script", "img"} & {tag for tag, _ in page.tags} and not any(key.startswith("on") for _, a in page.tags for key in a)
    assert "<script" not in (root / "table.md").read_text()


def test_a_terminal_is_not_steered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    escape = "\x1b]0;owned\x07\x1b[2J\r"
    root = sweep(tmp_path, dataclasses.asdict(SWEEP) | {"failures": {escape: {"tries": 1, "error": escape}}})
    for program, *arguments in ((sweeps_program, "status", str(root)), (store_program, "verify", escape)):
        monkeypatch.setattr("sys.argv", ["program", *arguments])
        with pytest.raises(SystemExit, match="1"):
            run_cli(program)
        said = "".join(capsys.readouterr())
        assert "owned" in said and not set("\x1b\x07\r") & set(said)


# --- JSON of other shapes

VALUES: list[Any] = [None, 7, "text", [], [1], {}, {"history": 7}, {"history": [7]}, {"history": [{}]}]
ROWS = {
    "history": [{"epoch": 1, "validation_accuracy": "x", "seconds": 1.0}],
    "test": {"accuracy": "x", "correct": 1, "count": 1},
    "provenance": {"versions": [1]},
    "network": 5,
    "seed": 0.5,
    "arm": ["kd"],
    "config": [1],
    "parameters": 1e9,
}


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_any_json_for_a_result(value: Any, tmp_path: Path) -> None:
    refused(lambda: read_rows(sweep(tmp_path, mine=value)), "delete it and run again|no JSON object")


@pytest.mark.parametrize("name", ROWS)
def test_a_result_with_another_type(name: str, tmp_path: Path) -> None:
    assert len(read_rows(sweep(tmp_path / "sound", mine=result(test={"accuracy": float("nan"), "correct": 0, "count": 0})))) == 1
    refused(lambda: read_rows(sweep(tmp_path, mine=result(**{name: ROWS[name]}))), "delete it and run again")


def test_a_result_that_names_no_store(tmp_path: Path) -> None:
    refused(lambda: publish(sweep(tmp_path, mine=result(config={"store": 7}))), "does not say which store")


CONFIG = DistillConfig(store="s", out="o")


def test_json_that_nests_or_is_of_another_kind(tmp_path: Path, finished: str) -> None:
    path = tmp_path / "best.json"
    for text in ("[" * 100_000, '{"a":' * 100_000, "NaN" * 3, "9" * 10_000, "\x00", ""):
        path.write_text(text)
        (tmp_path / "status.json").write_text(text)
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "manifest.json").write_text(text)
        for read in (
            lambda: read_json(path),
            lambda: recipe_values(str(path)),
            lambda: read_status(tmp_path),
            lambda: run_directory.claim(tmp_path, CONFIG, {}),
            lambda: Store.open(str(tmp_path)),
        ):
            refused(read, "is not JSON|is damaged or not ours")
    for text in ("[]", "7", '"x"', "null"):
        for name in ("best.json", "config.json", "status.json"):
            (tmp_path / name).write_text(text)
        refused(lambda: recipe_values(str(path)), "is no recipe")
        refused(lambda: run_directory.claim(tmp_path, CONFIG, {}), "is no JSON object")
        refused(lambda: read_status(tmp_path), "is no JSON object")
    for text in ('{"alpha": NaN}', '{"exponents": [1, Infinity]}', '{"alpha": true}'):
        path.write_text(text)
        refused(lambda: recipe_values(str(path)), "cannot be")


def test_a_status_of_any_time_is_described() -> None:
    for status in (dataclasses.replace(SWEEP, phase="running", updated=1e300, deadline=-1e300, running={"a": -(10**30)}),):
        assert describe(status, [result(cell="a", history=[history(1)[0] | {"seconds": 1e300}])], 0.0)


# --- addresses that a stranger could have written into a file


@pytest.mark.parametrize(
    "uri", ["reference://::file:///x.json", "http://127.0.0.1/x", "ssh://h/x", "simplecache::s3://b/x", "/a::/b", "zip://x"]
)
def test_no_other_file_systems(uri: str) -> None:
    refused(lambda: filesystem(uri), "use a local path or s3://BUCKET/PATH")
