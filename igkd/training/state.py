"""The state of a run on disk: all that is needed to resume after the last finished epoch."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from igkd.base.errors import UserError
from igkd.base.run_directory import STATE, is_history
from igkd.base.schema import fits
from igkd.base.storage import parse_json, write_bytes
from igkd.networks.weights import apart

History = list[dict[str, Any]]


def save_state(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: History,
    average: AveragedModel | None = None,
    decided: Mapping[str, str] | None = None,
    terms: nn.Module | None = None,
) -> None:
    """Write everything that `load_state` needs, as one safetensors file, atomically.

    Args:
        decided: choices that were made when the run started and stay when it is resumed; see `read_decided`.
        terms: terms of the loss, which may have parameters of their own.
    """
    tensors = {f"model.{k}": v for k, v in apart(model.state_dict()).items()}
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in apart(average.state_dict()).items()}
    if terms is not None:
        tensors |= {f"terms.{k}": v.detach().cpu().contiguous() for k, v in terms.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v.detach().cpu().contiguous() for k, v in state.items() if v is not None}
    metadata = {"history": json.dumps(history), "decided": json.dumps(dict(decided or {}))}
    write_bytes(directory / STATE, safetensors.torch.save(tensors, metadata=metadata))


def read_decided(directory: Path) -> dict[str, str]:
    """The choices that were saved as `decided` in the state in a directory.

    Raises:
        UserError: there is no state, or it is damaged.
    """
    with _state_of(directory), safetensors.safe_open(directory / STATE, "pt") as file:
        decided = parse_json(file.metadata()["decided"].encode())
        if not fits(decided, dict[str, str]):
            raise ValueError("what was decided is not there")
        return dict(decided)


def read_history(directory: Path) -> History:
    """The history (one row for each finished epoch) in the state in a directory.

    Raises:
        UserError: there is no state, or it is damaged.
    """
    with _state_of(directory), safetensors.safe_open(directory / STATE, "pt") as file:
        history = parse_json(file.metadata()["history"].encode())
        if not is_history(history):
            raise ValueError("its history is none")
        return list(history)


@contextlib.contextmanager
def _state_of(directory: Path) -> Iterator[None]:
    """Turns errors while reading a state into UserErrors: the file may be damaged, or come from anyone."""
    try:
        yield
    except (OSError, safetensors.SafetensorError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{directory / STATE} cannot be read ({line}); delete it to begin that run anew") from None


def load_state(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None = None,
    terms: nn.Module | None = None,
) -> History:
    """Restore model, optimizer, average and terms in place; returns the history of the finished epochs.

    Raises:
        UserError: there is no state, or it is damaged.
    """
    history = read_history(directory)
    with _state_of(directory):
        tensors = safetensors.torch.load_file(directory / STATE)

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}

        model.load_state_dict(part("model"))
        if average is not None:
            average.load_state_dict(part("average"))
        if terms is not None:
            terms.load_state_dict(part("terms"))
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for key, value in part("optimizer").items():
            index, name = key.split(".", 1)
            if value.shape not in (parameters[int(index)].shape, ()):
                raise ValueError(f"{key} has another shape than its parameter")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return history
