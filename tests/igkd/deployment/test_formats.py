"""The graph that is written to files: its layers, and that moving them does not change the function."""

import numpy as np
import pytest
import torch
from torch import nn

from igkd.deployment import formats
from igkd.networks.network import Classifier, Deployed, NetworkSpec, build
from tests.helpers.networks import settled


def test_max_pooling_moves_behind_what_rises_with_its_input() -> None:
    """The function stays, and of an airbench network's normalisations none is left for int8 to leave in float32."""
    spec = NetworkSpec(classes=("a", "b", "c"), image_shape=(17, 18), name="airbench:8,12")
    model = settled(build(spec, 1))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 17, 18, 3), dtype=np.uint8)
    network = formats.to_onnx(model)
    kinds = [node.op_type for node in network.graph.node]
    assert "BatchNormalization" not in kinds and kinds.count("MaxPool") == 2
    with torch.no_grad():
        expected = Deployed(model)(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(formats.run_onnx(network, pixels), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("layers", "moved"),
    [
        ([nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.ReLU()], [1, 2, 0]),
        ([nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(3), nn.Hardswish()], [0, 2, 1, 3]),
        ([nn.MaxPool2d(2), nn.BatchNorm2d(3, affine=False), nn.MaxPool2d(2), nn.ReLU()], [1, 3, 0, 2]),
        ([nn.MaxPool2d(2), nn.BatchNorm2d(3, track_running_stats=False)], [0, 1]),
        ([nn.MaxPool2d(2), nn.Hardswish()], [0, 1]),
        ([nn.AvgPool2d(2), nn.ReLU()], [0, 1]),
    ],
)
def test_only_functions_that_never_fall_change_places_with_a_pooling(layers: list[nn.Module], moved: list[int]) -> None:
    network = nn.Sequential(*layers).eval()
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected = network(x)
        assert [layers.index(layer) for layer in formats.pool_last(network)] == moved
        torch.testing.assert_close(network(x), expected)


class Branched(nn.Module):
    """Uses what a part of an `nn.Sequential` gives."""

    def __init__(self, split: int) -> None:
        super().__init__()
        self.body, self.split = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU()), split
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = self.body[: self.split](x)
        return self.head(torch.cat([part.mean(dim=(2, 3)), self.body[self.split :](part).mean(dim=(2, 3))], dim=1))


@pytest.mark.parametrize("split", [2, 3])
def test_a_network_that_uses_a_part_of_a_sequential_is_exported_as_it_is(split: int) -> None:
    torch.manual_seed(0)
    spec = NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name="lean:2:8x1")
    model = Classifier(spec, Branched(split)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = Deployed(model)(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(formats.run_onnx(formats.to_onnx(model), pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [-1.0, 0.0])
def test_a_normalisation_that_turns_values_round_stays_behind_the_pooling(weight: float) -> None:
    network = nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        network[1].weight[1] = weight
    assert isinstance(formats.pool_last(network)[0], nn.MaxPool2d)
