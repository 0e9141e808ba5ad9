"""The network and images that tests of igkd explain draw."""

from typing import Any

import torch

from igkd.config.explain import ExplainConfig
from igkd.images import drawn_shapes
from igkd.networks.network import Classifier, NetworkSpec, build
from tests.helpers.networks import settled

IMAGES = "shapes:train=10,test=40"


IDS = (31, 2, 17)


SPEC = NetworkSpec(classes=drawn_shapes.CLASSES, image_shape=(32, 32), name="mobilenet:cut=11,width=0.35,stride=2")


STEPS = 8


def confident(spec: NetworkSpec, seed: int = 3) -> Classifier:
    """An untrained network that is sure of its answers."""
    model = settled(build(spec, seed))
    with torch.no_grad():
        model.network.classifier.weight.mul_(50)
    return model


def config(student: str, **changes: Any) -> ExplainConfig:
    """The settings of a page of three images."""
    return ExplainConfig(**{"checkpoint": student, "images": IMAGES, "out": "page.html", "ids": IDS, "steps": STEPS} | changes)
