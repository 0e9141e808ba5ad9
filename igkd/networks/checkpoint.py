"""Checkpoints: a directory of `model.safetensors` and `model.json`. Nothing is ever unpickled.

The JSON holds the specification that rebuilds the network, and how it was made.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.base.storage import read_json, write_bytes, write_json
from igkd.networks.module import CodeRefused
from igkd.networks.network import Classifier, NetworkSpec, multiply_adds, parameter_count
from igkd.networks.weights import apart, shapes


def save(model: Classifier, directory: Path, made: Mapping[str, Any], half: bool = False) -> None:
    """Write `model.safetensors` and then `model.json`, each atomically.

    Args:
        model: the network; its spec is written into the JSON.
        directory: created if missing.
        made: how it was made (JSON values): command, seed, accuracies.
        half: store floating-point tensors as float16, at half the size; `load` converts them to float32 again.
    """
    state = apart(model.network.state_dict())
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    weights = safetensors.torch.save(state)
    write_bytes(directory / "model.safetensors", weights)
    write_json(
        directory / "model.json",
        {
            "format": 1,
            "spec": dataclasses.asdict(model.spec),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "parameters": parameter_count(model),
            "multiply_adds": multiply_adds(model),
            "made": dict(made),
        },
    )


def load(directory: Path | str) -> Classifier:
    """Load a checkpoint; the network is in evaluation mode.

    Raises:
        UserError: there is no checkpoint, it is damaged, or its tensors do not fit its spec.
        CodeRefused: its network is code that the user did not name.
    """
    directory = Path(directory)
    card = checkpoint_card(directory)
    try:
        weights = (directory / "model.safetensors").read_bytes()
    except OSError as error:
        raise UserError(f"{directory}/model.safetensors cannot be read ({error.strerror}); the checkpoint is incomplete") from None
    if hashlib.sha256(weights).hexdigest() != card["sha256"]:
        raise UserError(f"{directory}/model.safetensors does not match the sha256 in model.json: it was damaged or replaced")
    try:
        spec, state = NetworkSpec.from_json(card["spec"]), safetensors.torch.load(weights)
        expected = shapes(spec.name, len(spec.classes))
        if wrong := sorted(name for name in expected.keys() | state.keys() if name not in state or state[name].shape != expected.get(name)):
            raise ValueError(f"{len(wrong)} tensor(s) do not fit its spec, such as {short(wrong[0])}")
        model = Classifier(spec)
        model.network.load_state_dict(state)  # which converts what is in half precision
    except CodeRefused:
        raise
    except (SafetensorError, RuntimeError, TypeError, ValueError, OverflowError, KeyError, UserError) as error:
        raise UserError(
            f"{directory} is not a checkpoint of this project: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from None
    return model.eval()


def spec_of(directory: Path | str) -> NetworkSpec:
    """The spec of a checkpoint, without its weights.

    Raises:
        UserError: there is no checkpoint, or its spec is damaged.
    """
    try:
        return NetworkSpec.from_json(checkpoint_card(directory)["spec"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{directory} is not a checkpoint of this project: {error}") from None


def checkpoint_card(directory: Path | str) -> dict[str, Any]:
    """The `model.json` of a checkpoint: spec, sha256 of the weights, sizes, how it was made."""
    path = Path(directory) / "model.json"
    if not path.is_file():
        raise UserError(f"{directory} holds no checkpoint (no model.json there); make one with jobs.teacher or jobs.distill")
    card = read_json(path)
    if not isinstance(card, dict) or not {"spec", "sha256"} <= card.keys():
        raise UserError(f"{path} is not a checkpoint of this project: it names no spec and sha256")
    if not (isinstance(card["spec"], dict) and isinstance(card.setdefault("made", {}), dict)):
        raise UserError(f"{path} is not a checkpoint of this project: its spec, or how it was made, is no JSON object")
    return card
