"""Checkpoints and states of a stranger whose headers and cards lie: refused in one sentence."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.data  # noqa: F401  # registers Arrow types of its own, as in every job
import torch

from igkd.base import run_directory
from igkd.config.teacher import TeacherConfig
from igkd.networks import checkpoint
from igkd.networks.network import build
from igkd.training.optimizer import make_optimizer
from igkd.training.state import load_state, read_history, save_state
from tests.helpers.strangers import SPEC, history, refused


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


@pytest.mark.parametrize("kind", ["tensors", "optimizer", "parameter", "history", "nested"])
def test_a_state_of_something_else(kind: str, tmp_path: Path) -> None:
    model, recipe = build(SPEC, 0), TeacherConfig(images="shapes", out="o").optimisation
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
