"""A student to judge, and images."""

import numpy as np
import pytest
import torch

from igkd.images.open import open_images
from igkd.images.samples import Samples, load_samples
from igkd.networks import checkpoint
from igkd.networks.network import build
from tests.helpers.evaluations import IMAGES, SPEC
from tests.helpers.networks import settled


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("student")
    model = settled(build(SPEC, 3))
    with torch.no_grad():
        model.network.classifier.weight.mul_(50)  # answers of some confidence
    checkpoint.save(model, directory, {})
    return str(directory)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return load_samples(open_images(IMAGES), "test", np.arange(30))[0]
