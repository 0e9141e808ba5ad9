"""What tests of maps share."""

import pytest
import torch
from torch import Tensor

from igkd.attribution.base import INPUTS_PER_PASS
from igkd.base.choices import Engine
from igkd.networks.network import Classifier, NetworkSpec, build
from tests.helpers.networks import lively


@pytest.fixture(params=["captum", "torch", "openvino"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.param
    return found


@pytest.fixture(autouse=True)
def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO fills every pass up to its full size, which seven small images would leave nearly empty."""
    monkeypatch.setitem(INPUTS_PER_PASS, "cpu", 1)


@pytest.fixture(scope="module")
def model() -> Classifier:
    spec = NetworkSpec(
        classes=("a", "b", "c"), image_shape=(16, 16), name="mobilenet:cut=11,width=0.35", mean=(0.5, 0.45, 0.4), std=(0.24, 0.25, 0.26)
    )
    return lively(build(spec, 0))


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    """Seven images of 16x16 and a target for each."""
    return torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 1, 1, 0, 2, 2])
