"""Layers of equal size in any two networks."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.networks.network import NetworkSpec, build
from igkd.networks.taps import check_tap, common_size, deepest, layers, layers_of, student_tap, teacher_tap

SMALL = "timm:mobilenetv3_small_050"


def output_of(network: nn.Module, path: str, shape: tuple[int, int]) -> Tensor:
    seen: list[Tensor] = []
    network.get_submodule(path).register_forward_hook(lambda layer, inputs, output: seen.append(output))
    with torch.no_grad():
        network.eval()(torch.rand(1, 3, *shape))
    return seen[-1]


@pytest.mark.parametrize(
    ("student", "teacher", "shape", "size"),
    [
        (SMALL, "torchvision:resnet18", (64, 64), (2, 2)),
        (SMALL, "torchvision:resnet18", (224, 224), (7, 7)),
        ("torchvision:resnet18", "timm:resnet10t", (64, 96), (2, 3)),
        ("mobilenet:cut=5", "torchvision:resnet18", (32, 32), (8, 8)),
        ("lean:2:8x1,16x1", "mobilenet:width=0.35", (32, 32), (8, 8)),
        ("timm:resnet10t", "torchvision:convnext_tiny", (64, 64), (2, 2)),
    ],
)
def test_the_deepest_pair_has_one_size(student: str, teacher: str, shape: tuple[int, int], size: tuple[int, int]) -> None:
    theirs = build(NetworkSpec(name=teacher, classes=("a", "b"), image_shape=shape), 0).network
    tap = teacher_tap(student, teacher, theirs, 2, shape)
    assert tap is not None
    mine = student_tap(student, teacher, 2, shape, size)
    assert mine is not None
    ours = build(NetworkSpec(name=student, classes=("a", "b"), image_shape=shape), 0).network
    assert output_of(theirs, tap, shape).shape[2:] == torch.Size(size) == output_of(ours, mine, shape).shape[2:]
    smaller = {one for one in layers(theirs, shape).values() if one[0] * one[1] < size[0] * size[1]}
    assert not smaller & set(layers(ours, shape).values())


def test_layers_are_what_hooks_see() -> None:
    network = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    found = layers(network, (64, 48))
    assert found == dict(layers_of(SMALL, 3, (64, 48))) and list(found) == list(layers_of(SMALL, 3, (64, 48)))
    for path, size in list(found.items())[::7]:
        assert output_of(network, path, (64, 48)).shape[2:] == torch.Size(size)
    assert min(size for sizes in found.values() for size in sizes) > 1 and not network.training


def test_outputs_with_channels_last_are_no_feature_maps() -> None:
    found = layers(torchvision.models.swin_t(num_classes=2), (64, 64))
    assert found and not any(path.startswith("features.3") for path in found)


def test_families_with_taps_of_their_own_keep_them() -> None:
    teacher = build(NetworkSpec(name="mobilenet", classes=("a", "b"), image_shape=(32, 32)), 0).network
    assert teacher_tap("mobilenet:cut=9", "mobilenet", teacher, 2, (32, 32)) == "features.4"
    assert student_tap("mobilenet:cut=9", "mobilenet", 2, (32, 32), (16, 16)) == "features.4"


def test_a_stages_output_goes_before_a_layer_inside_the_next_stage() -> None:
    found = layers_of("torchvision:shufflenet_v2_x0_5", 2, (64, 64))
    assert deepest(found, (8, 8)) == "stage2" and list(found).index("stage3.0.branch2.2") > list(found).index("stage2")
    assert found["stage3.0.branch2.2"] == (8, 8)


def test_sizes_that_are_not_there() -> None:
    found = {"a": (16, 16), "b": (8, 8), "c": (8, 8)}
    assert deepest(found, (7, 7)) == "c" and deepest(found, (14, 14)) == "a" and deepest({}, (7, 7)) is None
    assert common_size(found, {"x": (5, 5), "y": (20, 20)}) == (5, 5) and common_size(found, {"x": (16, 16), "y": (8, 8)}) == (8, 8)
    assert common_size({}, found) is None is common_size(found, {})


def test_a_path_that_is_no_layer() -> None:
    found = layers_of("torchvision:resnet18", 2, (64, 64))
    assert check_tap("layer3", found, "r") == "layer3"
    with pytest.raises(
        UserError, match=r"^r has no layer 'layer9' with feature maps .*; from the deepest, it has layer4 \(2x2\), layer4.1 \(2x2\)"
    ):
        check_tap("layer9", found, "r")
    with pytest.raises(UserError, match="has no layer 'fc'"):
        check_tap("fc", found, "r")
