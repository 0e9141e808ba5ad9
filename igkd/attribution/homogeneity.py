"""Whether a network is homogeneous, so that its integrated gradients take one pass instead of many."""

from typing import Literal

import torch
from torch import Tensor

from igkd.attribution.base import Colour, FromBaseline
from igkd.base.choices import Engine, Method
from igkd.networks.network import Classifier

ONE_PASS = "one pass"
"""In place of a quadrature rule's name: the integrand is constant, so its value at one node is the integral."""
FACTORS = (2.0, 0.5, 2.0**10, 2.0**-10, 2.0**-20, 0.3, 700.0)
"""Factors of the input. Small ones show a bias, whose share of the logits then grows: at 2^-20, one of 1e-6 of the logits is as large as
they are. Large ones show bounds that ordinary inputs do not reach, such as ReLU6's. Powers of 2 first: they round nothing."""
SAME = 1e-4
"""Largest difference of a logit from that of a homogeneous network, relative to the largest logit. Rounding is far below."""


def is_homogeneous(model: Classifier, pixels: Tensor, baseline: Colour | None = None) -> bool:
    """Whether F(a z) = a F(z) for some images and several a > 0, with z = image - baseline in normalised space and F the logits.

    If so for all a, F is linear along the path from the baseline, and integrated gradients are exactly input times gradient (Hesse et al.
    2021, "Fast Axiomatic Attribution for Neural Networks", arXiv 2111.07668, proposition 3.2).

    Args:
        model: in evaluation mode.
        pixels: real images, uint8 or float in [0, 1] (B, 3, H, W): random ones may leave parts of a network unused.
        baseline: as in `attributor`.
    """
    network = FromBaseline(model, baseline).eval()
    z = network.beyond(pixels)
    with torch.inference_mode():
        logits = network(z).double()
        # One after the other, so that of most networks only the first is computed.
        return all(bool((network(a * z).double() / a - logits).abs().max() <= SAME * logits.abs().max()) for a in FACTORS)


def takes_one_pass(engine: Literal["fast"] | Engine, method: Method, model: Classifier, pixels: Tensor) -> bool:
    """Whether the maps that are asked for can be had exactly in one pass: by an engine in full precision, of a homogeneous network.

    captum is the reference and integrates always. openvino-bf16 rounds its gradients, which averages out over many nodes, but not in one.

    Args:
        engine: as the user named it.
        model, pixels: as in `is_homogeneous`, at least one image.
    """
    if method != "ig" or engine not in ("fast", "torch", "openvino"):
        return False
    try:
        return is_homogeneous(model, pixels)
    except Exception:  # a network that cannot be run raises exceptions of any type; `find_engine` refuses it in words
        return False
