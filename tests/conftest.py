import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
import s3fs
import torch

import jobs  # noqa: F401  # sets what Ray reads when it is imported, by whichever test is the first to do so
from igkd.config.precompute import PrecomputeConfig
from igkd.images import drawn_shapes
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build
from tests.helpers.networks import settled
from tests.helpers.pictures import BAD, LABELS, encoded, write_parquet
from tests.helpers.servers import free_port, wait_for_port
from tests.helpers.stores import make_store

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


def pytest_configure() -> None:
    """A script's background job ignores Ctrl-C, and so would the jobs that tests stop by it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a narrow teacher of the shapes with random weights; its logits differ clearly from image to image."""
    directory = tmp_path_factory.mktemp("teacher")
    spec = NetworkSpec(
        classes=drawn_shapes.CLASSES, image_shape=(32, 32), name="mobilenet:width=0.35", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
    )
    checkpoint.save(settled(build(spec, seed=1)), directory, {})
    return str(directory)


@pytest.fixture(scope="session")
def parquet_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """34 pictures with labels in no order, in three files of several row groups, some of them JPEG, some broken."""
    directory = tmp_path_factory.mktemp("images")
    data: list[bytes | None] = [encoded(drawn_shapes.draw(5, "train", i)[0], "JPEG" if i % 3 == 0 else "PNG") for i in range(len(LABELS))]
    for i in BAD:
        data[i] = b"no picture" if i % 2 else None
    for number, (begin, end) in enumerate([(0, 11), (11, 13), (13, 34)]):
        write_parquet(directory / f"train-{number:05d}-of-00003.parquet", data[begin:end], LABELS[begin:end].tolist(), drawn_shapes.CLASSES)
    return f"parquet:{directory}"


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
