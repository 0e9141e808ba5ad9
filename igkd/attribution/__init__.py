"""Attribution maps: which pixels of an image a classifier's answer depends on.

    attribute = attributor(model, "ig", engine, steps=50)
    attribute(pixels, labels, ids).ig

Methods: `ig`, integrated gradients (Sundararajan, Taly, Yan 2017, "Axiomatic Attribution for Deep Networks"): attribution_i =
(x_i - x'_i) * integral over a in [0, 1] of dF(x' + a (x - x')) / dx_i, here with F the logit of the true label and x' the baseline;
`smoothgrad-ig`, its mean over noisy copies of the image (Smilkov et al. 2017, "SmoothGrad"); `input-x-gradient` (Shrikumar et
al. 2016). A map is the sum over channels of the absolute attributions.

The baseline x' is an image of a single colour, by default 0 in the network's normalised space. To compare maps of two networks, give both
the same `baseline`, a colour in pixels.

Engines: `captum`, the reference, computes all methods; `torch`, `openvino` and `openvino-bf16` compute only `ig`, several times faster.
Of a homogeneous network (`homogeneity`) one node gives the integral exactly.
"""

import functools
import importlib.util
from typing import Literal

import torch

from igkd.attribution.base import FAST_ENGINES, Attribution, Attributor, Colour, FromBaseline, Tell, inputs_per_pass, nobody
from igkd.attribution.homogeneity import ONE_PASS, takes_one_pass
from igkd.base.choices import Engine, Method
from igkd.base.errors import UserError, first_line
from igkd.networks.network import Classifier

__all__ = [
    "FAST_ENGINES",
    "ONE_PASS",
    "Attribution",
    "Attributor",
    "Colour",
    "Engine",
    "Method",
    "Tell",
    "attributor",
    "choose_engine",
    "find_engine",
    "inputs_per_pass",
    "nobody",
    "quadrature",
    "takes_one_pass",
]
TOLERANCE = 0.1
"""Largest accepted distance between an engine's map and the map by plain autograd, relative to the latter's Euclidean norm. A backward
pass in bfloat16 is off by some hundredths, the kinks of ReLU add some thousandths; a wrongly translated graph is off by about 1."""


def choose_engine(engine: Literal["fast"] | Engine, method: Method, gpu: bool) -> Engine:
    """The engine that `fast` means on this machine, for any network; other values of `engine` are returned unchanged.

    Args:
        gpu: whether the maps will be computed on GPUs.

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


def find_engine(
    engine: Literal["fast"] | Engine, method: Method, gpu: bool, model: Classifier, shape: tuple[int, int], one_pass: bool = False
) -> tuple[Engine, str]:
    """The engine that computes a network's maps. It is first tried on two random images, so that it fails before anything is written.

    Args:
        gpu: whether the maps will be computed on GPUs.
        model: in evaluation mode; the trial runs on its device.
        shape: (height, width) of the images.
        one_pass: whether maps will be of one node (`takes_one_pass`); `fast` then stands for torch, which needs no compilation and was
            0.9 to 1.9 times as fast as OpenVINO in float32 (docs/decisions.md).

    Returns:
        the engine and, for `fast`, a few words on why it was chosen; for another value of `engine`, "".

    Raises:
        UserError: the requested engine cannot compute the method, is not installed or fails with this network; with `fast`, all fail.
    """
    first = choose_engine(engine, method, gpu)
    if one_pass and engine == "fast":
        first = "torch"
    trial = _Trial(model, method, shape)
    if engine != "fast":
        if failure := trial.failure(first):
            raise UserError(f"--engine {engine} cannot compute maps of this network: it {failure}; leave --engine out, and one is found")
        return first, ""
    if method != "ig":
        candidates, reasons = [first], [f"the one that does {method}"]
    elif first == "torch":
        why = "there are GPUs" if gpu else "for one pass it is as fast as OpenVINO" if one_pass else "OpenVINO is not installed"
        candidates, reasons = [first, "captum"], [why]
    else:
        candidates, reasons = [first, "torch", "captum"], []
    if method == "ig" and (unfolded := trial.why_not_folded()):
        # If torch.fx cannot read the network, OpenVINO may translate it wrongly; plain autograd needs no translation.
        candidates = [kind for kind in candidates if not kind.startswith("openvino")]
        reasons.append(f"its batch norms are not folded: {unfolded}")
    for kind in candidates:
        failure = trial.failure(kind)
        if not failure:
            return kind, "; ".join(reasons) or "nothing is faster on this machine"
        reasons.append(f"{kind} {failure}")
    raise UserError(f"no engine can compute maps of this network ({'; '.join(reasons)}); choose another --teacher")


class _Trial:
    """Two random images on which engines are compared with plain autograd."""

    def __init__(self, model: Classifier, method: Method, shape: tuple[int, int]) -> None:
        self.model, self.method = model, method
        self.pixels = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
        self.labels = torch.zeros(2, dtype=torch.int64)

    def why_not_folded(self) -> str:
        """Why batch norms cannot be folded; "" if they can, or if the network cannot be run at all."""
        from igkd.attribution.fast import folded

        try:
            return folded(FromBaseline(self.model, None).eval(), self.pixels.shape[1:])[1]
        except Exception:
            return ""

    def failure(self, engine: Engine) -> str:
        """What is wrong with an engine's maps, as the end of a sentence; "" if they are right."""
        try:
            if engine == "captum":
                attributor(self.model, self.method, engine, 2)(self.pixels, self.labels, torch.arange(2))
                return ""
            expected = self.expected
            if engine == "torch":  # it is plain autograd itself; `why_not_folded` has compared the folded network
                return ""
            maps = attributor(self.model, self.method, engine, 2)(self.pixels, self.labels, torch.arange(2)).ig.double()
        except Exception as error:  # libraries that translate networks raise exceptions of any type
            return f"fails ({first_line(error)})"
        if expected.isfinite().all() and not (maps - expected).norm() <= TOLERANCE * expected.norm():
            return "gives other maps than plain differentiation"
        return ""

    @functools.cached_property
    def expected(self) -> torch.Tensor:
        """The maps by plain autograd, float64 (2, H, W)."""
        from igkd.attribution.fast import plain_map

        return plain_map(self.model, self.pixels, self.labels, 2).double()


def quadrature(engine: Engine, method: Method, one_pass: bool = False) -> str:
    """Captum's name of the quadrature rule for the path integral, or `ONE_PASS`; "none" for methods without an integral."""
    if one_pass:
        return ONE_PASS
    if method == "input-x-gradient":
        return "none"
    return "gausslegendre" if engine == "captum" else "riemann_middle"


def attributor(
    model: Classifier, method: Method, engine: Engine, steps: int, baseline: Colour | None = None, one_pass: bool = False
) -> Attributor:
    """The function that computes maps.

    Args:
        model: in evaluation mode, on the device to compute on.
        steps: nodes of the quadrature.
        baseline: colour of the baseline image, as RGB in [0, 1]; None is the network's mean colour, 0 in its normalised space.
        one_pass: take one pass instead of `steps`, which `takes_one_pass` has to allow.
    """
    if engine == "captum":
        from igkd.attribution.reference import CaptumAttribution  # takes a second to import

        return CaptumAttribution(model, method, steps, baseline)
    from igkd.attribution.fast import FastIntegratedGradients, OnePass

    if one_pass and engine == "torch":
        return OnePass(model, baseline)
    return FastIntegratedGradients(model, 1 if one_pass else steps, engine, baseline)
