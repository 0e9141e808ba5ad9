"""Grad-CAM: where in the image a deep layer's features speak for a class, for little more than one pass."""

import torch
import torch.nn.functional as F
from torch import Tensor

from igkd.attribution.base import inputs_per_pass
from igkd.networks.network import Classifier


def grad_cam(model: Classifier, pixels: Tensor, labels: Tensor, layer: str) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization"):
    ReLU(sum_k a_k A_k), with A_k the k-th channel of a layer's output, and a_k the mean over positions of the gradient of the label's logit
    by A_k.

    Args:
        model: in evaluation mode.
        pixels: float (B, 3, H, W) in [0, 1].
        labels: int64 (B,).
        layer: path of a layer that gives feature maps (B, C, h, w).

    Returns:
        float32 (B, h, w) on the CPU, not negative.
    """
    device = next(model.parameters()).device
    size = inputs_per_pass(device.type, pixels.shape[-2] * pixels.shape[-1])
    found = []
    for some, targets in zip(pixels.split(size), labels.split(size), strict=True):
        with torch.enable_grad():
            # The input needs a gradient, so that the features have one where the network's weights have none.
            logits, outputs = model(some.to(device).requires_grad_(), (layer,))
            chosen = logits.gather(1, targets.to(device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, outputs[layer])
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        found.append((weights * outputs[layer].detach()).sum(dim=1).relu().float().cpu())
    return torch.cat(found)


def enlarged(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Maps (B, h, w) interpolated bilinearly to (B, H, W); maps of that size are returned unchanged."""
    if tuple(maps.shape[1:]) == shape:
        return maps
    return F.interpolate(maps[:, None], size=shape, mode="bilinear", align_corners=False)[:, 0]
