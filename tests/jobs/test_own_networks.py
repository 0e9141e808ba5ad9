"""A user's own networks through the jobs, in their own processes and in Ray's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from igkd.networks import checkpoint
from igkd.store import Store
from tests.helpers.paths import ROOT

IMAGES = "shapes:train=100,test=30"
NETS = """
from torch import nn
def block(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
def big(classes):
    return nn.Sequential(block(3, 16), block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))
def small(classes):
    return nn.Sequential(block(3, 8), block(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
"""


def run(directory: Path, *arguments: str, allowed: str = "") -> subprocess.CompletedProcess[str]:
    """A command as a user types it in a directory of his own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IGKD_MODULES": allowed}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_from_a_state_dict_to_a_student_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "nets_of_mine.py").write_text(NETS)
    scope: dict[str, object] = {}
    exec(NETS, scope)
    torch.manual_seed(0)
    network = scope["big"](10)  # type: ignore[operator]
    assert isinstance(network, nn.Module)
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "big.pth")
    flags = ["--images", IMAGES, "--image-size", "32", "--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25", "--out", "teacher"]
    imported = run(tmp_path, "igkd", "import", "module:nets_of_mine:big", "--weights", "big.pth", *flags)
    assert "of 30 test images right; written to teacher" in imported.stdout, imported.stderr

    precompute = ["jobs.precompute", "--images", IMAGES, "--teacher", "teacher", "--store", "store", "--steps", "2"]
    refused = run(tmp_path, *precompute)
    assert refused.returncode == 1 and refused.stderr.startswith("error: module:nets_of_mine:big is code, and only a file names it")
    assert not (tmp_path / "store").exists()
    done = run(tmp_path, *precompute, "--student", "module:nets_of_mine:small", allowed="nets_of_mine:big")
    assert done.returncode == 0, done.stderr
    plan = Store.open(str(tmp_path / "store")).plan
    assert plan.attention_layer == "1" and plan.attention_shape == (8, 8) and plan.teacher_network == "module:nets_of_mine:big"

    distil = ["--arm", "kd+at", "--student", "module:nets_of_mine:small", "--epochs", "1", "--batch-size", "16", "--out", "student"]
    done = run(tmp_path, "jobs.distill", "--store", "store", "--test-images", IMAGES, *distil)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "student" / "result.json").read_text())
    assert row["network"] == "module:nets_of_mine:small" and row["test"]["count"] == 30
    assert row["compression"] == round(sum(p.numel() for p in network.parameters()) / row["parameters"], 2)
    judged = ["igkd", "evaluate", "--checkpoint", "student", "--images", IMAGES, "--teacher", "teacher"]
    assert "is code, and only a file names it" in run(tmp_path, *judged, allowed="nets_of_mine:big").stderr
    assert "agreement with it" in run(tmp_path, *judged, allowed="nets_of_mine:big,nets_of_mine:small").stdout
    assert checkpoint.checkpoint_card(tmp_path / "student")["spec"]["name"] == "module:nets_of_mine:small"
