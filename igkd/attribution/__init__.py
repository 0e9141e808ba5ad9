"""What a classifier looks at: maps of one image's evidence for its label.

    attribute = attributor(model, "ig", engine, steps=50)
    attribute(pixels, labels, ids).ig

Methods: `ig`, integrated gradients (Sundararajan, Taly, Yan 2017, "Axiomatic Attribution for Deep Networks"): attribution_i =
(x_i - x'_i) * integral over a in [0, 1] of dF(x' + a (x - x')) / dx_i, here with F the logit of the true label and x' = 0 in normalised
space; `smoothgrad-ig`, its mean over noisy copies of the image (Smilkov et al. 2017, "SmoothGrad"); `input-x-gradient` (Shrikumar et
al. 2016). A map is the sum over channels of the absolute attributions.

Engines: `captum`, the reference, does all of them; `torch`, `openvino` and `openvino-bf16` do `ig` with several times less work.
"""

import importlib.util
from typing import Literal

from igkd.attribution.base import FAST_ENGINES, Attribution, Attributor, Engine, Method, inputs_per_pass
from igkd.errors import UserError
from igkd.models import ImageClassifier

__all__ = ["FAST_ENGINES", "Attribution", "Attributor", "Engine", "Method", "attributor", "choose_engine", "inputs_per_pass", "quadrature"]


def choose_engine(engine: Literal["fast"] | Engine, method: Method, gpu: bool) -> Engine:
    """The engine that `fast` stands for here; another as it is.

    Args:
        gpu: whether there are GPUs to compute on.

    Raises:
        UserError: the engine cannot do the method, or is not installed.
    """
    if engine != "captum" and method != "ig":
        if engine != "fast":
            raise UserError(f"--engine {engine} does only --method ig; leave it out, or take --engine captum")
        return "captum"
    installed = importlib.util.find_spec("openvino") is not None
    if engine in ("openvino", "openvino-bf16") and not installed:
        raise UserError(f"--engine {engine} needs OpenVINO: pip install 'igkd[openvino]'; --engine torch works without")
    if engine == "fast":
        if gpu or not installed:
            return "torch"
        from igkd.attribution.openvino import has_bfloat16  # an optional dependency

        return "openvino-bf16" if has_bfloat16() else "openvino"
    return engine


def quadrature(engine: Engine, method: Method) -> str:
    """Captum's name of the rule by which the path integral is taken; "none" where there is no integral."""
    if method == "input-x-gradient":
        return "none"
    return "gausslegendre" if engine == "captum" else "riemann_middle"


def attributor(model: ImageClassifier, method: Method, engine: Engine, steps: int) -> Attributor:
    """The function that computes maps.

    Args:
        model: in evaluation mode, on the device to compute on.
        steps: nodes of the quadrature.
    """
    if engine == "captum":
        from igkd.attribution.reference import CaptumAttribution  # takes a second to import

        return CaptumAttribution(model, method, steps)
    from igkd.attribution.fast import FastIntegratedGradients

    return FastIntegratedGradients(model, steps, engine)
