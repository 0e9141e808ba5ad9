"""Integrated gradients of a classifier's logit: the reference engine, Captum's.

Sundararajan, Taly, Yan 2017, "Axiomatic Attribution for Deep Networks": attribution_i = (x_i - x'_i) * integral over a in [0, 1] of
dF(x' + a (x - x')) / dx_i, here with F the logit of the true label and x' = 0 in normalised space. The map is the sum over channels of
the absolute attributions.
"""

from dataclasses import dataclass

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from igkd.models import Classifier

METHOD = "gausslegendre"
# Interpolated 32x32 inputs in one pass: enough to keep a device busy, few enough for a processor's caches; larger images get fewer.
INPUTS_PER_PASS = {"cpu": 64, "cuda": 4096}


@dataclass(frozen=True)
class Attribution:
    """Maps of B images."""

    ig: Tensor
    """float32 (B, H, W), in logit units, not negative."""
    delta: Tensor
    """float32 (B,): completeness error, sum of attributions - (F(x) - F(baseline)); 0 for an exact integral."""
    logits: Tensor
    """float32 (B, classes) of the images themselves."""


def integrated_gradients(model: Classifier, pixels: Tensor, labels: Tensor, steps: int = 50) -> Attribution:
    """Integrated gradients with Captum, one image a call, so that no image has an influence on another's map.

    In a batch of several images a kernel may round otherwise, which now and then carries an activation across a corner of ReLU6 and
    changes a map by a hundredth of its maximum.

    Args:
        model: in evaluation mode.
        pixels: float (B, 3, H, W) in [0, 1], or uint8 of the same shape.
        labels: int64 (B,), the target of each image.
        steps: nodes of the Gauss-Legendre quadrature.

    Returns:
        the maps, on the processor.
    """
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / 255
    device = next(model.parameters()).device
    limit = inputs_per_pass(device.type, pixels.shape[-2] * pixels.shape[-1])
    engine = IntegratedGradients(model.from_normalised)
    maps, deltas, logits = [], [], []
    for image, target in zip(pixels.split(1), labels.split(1), strict=True):
        x, target = model.normalise(image.to(device)), target.to(device)
        attributions, delta = engine.attribute(
            x,
            baselines=torch.zeros_like(x),
            target=target,
            n_steps=steps,
            method=METHOD,
            internal_batch_size=min(steps, limit),
            return_convergence_delta=True,
        )
        with torch.inference_mode():
            logits.append(model.from_normalised(x).float().cpu())
        maps.append(attributions.detach().abs().sum(dim=1).float().cpu())
        deltas.append(delta.detach().float().cpu())
    return Attribution(torch.cat(maps), torch.cat(deltas), torch.cat(logits))


def inputs_per_pass(device: str, pixels: int) -> int:
    """Interpolated inputs of `pixels` pixels each that one pass takes on a kind of device; at least 1."""
    return max(1, INPUTS_PER_PASS.get(device, INPUTS_PER_PASS["cpu"]) * 32 * 32 // pixels)
