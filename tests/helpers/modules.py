"""Modules of users for the family module:, as files in a directory that Python imports from."""

import itertools
import sys
from pathlib import Path

import pytest

_NUMBERS = itertools.count()


HEAD = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
NET = (
    HEAD
    + """
input_size, mean, std = 16, (0.5, 0.4, 0.3), [0.2, 0.2, 0.1]
def net(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""
)
FIXED = (
    HEAD
    + """
classes, input_size, mean, std = ["x", "y"], (3, 8, 12), (0.5,) * 3, (1,) * 3
def net():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
)


def write_module(directory: Path, text: str, monkeypatch: pytest.MonkeyPatch, allowed: tuple[str, ...] = ("net",)) -> str:
    """Write a module with a name that no other test has; gives that name. Of its functions those in `allowed` are allowed to be run."""
    place = f"users_module_{next(_NUMBERS)}"
    (directory / f"{place}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path, str(directory)])
    monkeypatch.setenv("IGKD_MODULES", ",".join(f"{place}:{name}" for name in allowed))
    return place
