"""The network and the images that tests of evaluation judge, and how figures are compared."""

from typing import Any

import pytest

from igkd.images import drawn_shapes
from igkd.networks.network import NetworkSpec

IMAGES = "shapes:train=10,test=30"


SPEC = NetworkSpec(classes=drawn_shapes.CLASSES, image_shape=(32, 32), name="mobilenet:cut=11,width=0.35,stride=2")


def near(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same up to rounding."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(near(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(near, a, b))
    return bool(a == pytest.approx(b, rel=1e-4, abs=1e-5))
