"""Files of a stranger: no pickle in them is loaded, wherever it is, and what is said is one sentence."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  # registers Arrow types of its own, as in every job
import torch
from PIL import Image

from igkd import store
from igkd.base import run_directory
from igkd.config.teacher import TeacherConfig
from igkd.images.codec import BadImage, decode
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.network import build
from igkd.networks.open import open_teacher
from igkd.store import Store, part_name
from igkd.training.optimizer import make_optimizer
from igkd.training.state import load_state
from tests.helpers.pictures import encoded
from tests.helpers.strangers import PIXELS, SPEC, refused, replace_part


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
    optimizer = make_optimizer(model, TeacherConfig(images="shapes", out="o").optimisation)
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


def test_a_picture_that_is_a_program() -> None:
    for kind in ("EPS", "PDF", "XBM"):
        data = encoded(Image.fromarray(PIXELS).convert("1" if kind == "XBM" else "RGB"), kind)
        with pytest.raises(BadImage, match="not a picture"):
            decode(data)
