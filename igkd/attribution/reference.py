"""The reference engine: Captum, called with one image at a time."""

from typing import Any

import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel
from torch import Tensor

from igkd.attribution.base import Attribution, Colour, FromBaseline, Tell, inputs_per_pass, nobody
from igkd.base.random_draws import uniform
from igkd.networks.network import Classifier

SMOOTHGRAD_SAMPLES = 8
SMOOTHGRAD_NOISE = 0.15
"""Standard deviation of the noise relative to the image's range of values; the SmoothGrad paper recommends 0.1 to 0.2."""


class CaptumAttribution:
    """Maps by Captum with Gauss-Legendre quadrature, as in the paper; one image at a time, so that no image affects another's map.

    In a batch of several images a kernel may round differently. That can move an activation across a kink of ReLU6 and change a map by a
    hundredth of its maximum.
    """

    def __init__(self, model: Classifier, method: str, steps: int, baseline: Colour | None = None) -> None:
        self.network, self.method, self.steps = FromBaseline(model, baseline), method, steps

    def __call__(self, pixels: Tensor, labels: Tensor, ids: Tensor, tell: Tell = nobody) -> Attribution:
        rows = []
        for image, label, image_id in zip(pixels.split(1), labels.split(1), ids, strict=True):
            rows.append(self._one(self.network.beyond(image), label.to(self.network.device), int(image_id)))
            tell(len(rows))
        return Attribution(*(torch.cat([row[i].detach().float().cpu() for row in rows]) for i in range(3)))

    def _one(self, x: Tensor, target: Tensor, image_id: int) -> tuple[Tensor, Tensor, Tensor]:
        """Map (1, H, W), completeness error (1,) and logits (1, classes) of one image, given as image - baseline (1, 3, H, W)."""
        network = self.network
        with torch.inference_mode():
            logits = network(x)
            rise = (logits - network(torch.zeros_like(x)))[0, target]
        attributions = self._attributions(x, target, image_id)
        return attributions.abs().sum(dim=1), attributions.sum().reshape(1) - rise, logits

    def _attributions(self, x: Tensor, target: Tensor, image_id: int) -> Tensor:
        network = self.network
        limit = inputs_per_pass(x.device.type, x.shape[-2] * x.shape[-1])
        how: dict[str, Any] = {
            "baselines": torch.zeros_like(x),
            "target": target,
            "n_steps": self.steps,
            "method": "gausslegendre",
            "internal_batch_size": min(self.steps, limit),
        }
        attributions: Tensor
        if self.method == "input-x-gradient":
            attributions = InputXGradient(network).attribute(x, target=target)
        elif self.method == "ig":
            attributions = IntegratedGradients(network).attribute(x, **how)
        else:
            with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
                torch.manual_seed(int(uniform(0, "smoothgrad", np.array([image_id]))[0] * 2**53))
                attributions = NoiseTunnel(IntegratedGradients(network)).attribute(
                    x,
                    nt_type="smoothgrad",
                    nt_samples=SMOOTHGRAD_SAMPLES,
                    nt_samples_batch_size=1,
                    stdevs=SMOOTHGRAD_NOISE * (x.max() - x.min()).item(),
                    **how,
                )
        return attributions
