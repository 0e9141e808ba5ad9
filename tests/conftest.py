import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import torch
from PIL import Image

import jobs  # noqa: F401  # sets what Ray reads when it is imported, by whichever test is the first to do so
from igkd import models, precompute, shapes, store
from igkd.config import PrecomputeConfig
from igkd.images import open_images

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


def pytest_configure() -> None:
    """A script's background job ignores Ctrl-C, and so would the jobs that tests stop by it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


def lively(model: models.Classifier, seed: int = 0) -> models.Classifier:
    """Give batch normalisation and the last layer values that a trained network could have; a fresh one hides mistakes in them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.2, 0.6, generator=generator)
            module.num_batches_tracked.fill_(7)
            with torch.no_grad():
                module.weight.uniform_(0.7, 1.3, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    with torch.no_grad():
        model.classifier.weight.normal_(0, 0.5, generator=generator)
        model.classifier.bias.normal_(0, 0.5, generator=generator)
    return model.eval()


def settled(model: models.Classifier) -> models.Classifier:
    """Give batch normalisation the statistics of some shapes, so that signals neither fade nor grow with depth."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # running statistics are then plain means
    pixels = np.stack([shapes.draw(9, "train", i)[0] for i in range(16)]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        model.train()(torch.from_numpy(pixels).float() / 255)
    return model.eval()


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a narrow teacher of the shapes with random weights; its logits differ clearly from image to image."""
    directory = tmp_path_factory.mktemp("teacher")
    spec = models.ModelSpec(classes=shapes.CLASSES, image_shape=(32, 32), width=0.35, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    models.save(settled(models.build(spec, seed=1)), directory, {})
    return str(directory)


@pytest.fixture(scope="session")
def parquet_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """34 pictures with labels in no order, in three files of several row groups, some of them JPEG, some broken."""
    directory = tmp_path_factory.mktemp("images")
    data: list[bytes | None] = [encoded(shapes.draw(5, "train", i)[0], "JPEG" if i % 3 == 0 else "PNG") for i in range(len(LABELS))]
    for i in BAD:
        data[i] = b"no picture" if i % 2 else None
    for number, (begin, end) in enumerate([(0, 11), (11, 13), (13, 34)]):
        write_parquet(directory / f"train-{number:05d}-of-00003.parquet", data[begin:end], LABELS[begin:end].tolist(), shapes.CLASSES)
    return f"parquet:{directory}"


def make_store(config: PrecomputeConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What jobs.precompute does, without Ray; gives the manifest. The teacher computes in `dtype`."""
    source, model = open_images(config.images), models.load(config.teacher).to(dtype)
    plan, selection = precompute.make_plan(config, source, model, models.checkpoint_card(config.teacher)["sha256"])
    attribute = precompute.plan_attributor(model, plan)
    missing, entries = store.start(config.store, plan), []
    for part in range(plan.parts):
        chosen = selection.part(plan, part)
        if part in missing:
            rows = precompute.attribute_rows(model, attribute, plan, precompute.read_rows(source, plan, chosen))
            entries.append(precompute.write_rows(config.store, plan, part, chosen.ids, rows))
        else:
            entries.append(store.check_part(config.store, plan, part, chosen.ids))
    return store.finish(config.store, plan, entries)


@pytest.fixture(scope="session")
def store_config(tmp_path_factory: pytest.TempPathFactory, teacher: str, parquet_images: str) -> PrecomputeConfig:
    return PrecomputeConfig(
        images=parquet_images,
        teacher=teacher,
        store=str(tmp_path_factory.mktemp("stores") / "finished"),
        steps=5,
        engine="captum",
        precision="float32",
        rows_per_file=7,
        bad_images="skip",
    )


@pytest.fixture(scope="session")
def finished(store_config: PrecomputeConfig) -> str:
    """A finished store of `parquet_images`, five parts, the third without a row. Tests copy it before they damage it.

    Computed in float64: in float32 the rounding of a batch moves an activation across a corner of ReLU6 now and then, which changes a
    map by a hundredth of its maximum, and no tolerance could be tight.
    """
    make_store(store_config, torch.float64)
    return store_config.store


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_port(server: "subprocess.Popen[Any]", port: int) -> None:
    """Return when a server that is starting takes connections, or after a minute."""
    for _ in range(600):
        assert server.poll() is None, "the server did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 0.1).close()
            return
        except OSError:
            time.sleep(0.1)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server of our own."""
    port = free_port()
    program = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A client of that server that shares nothing with s3fs; the environment points there too, and the bucket `igkd` exists."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CONFIG_FILE": os.devnull,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="igkd")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
