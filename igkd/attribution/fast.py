"""The fast engine for integrated gradients: the same maps with less work.

Batch normalisation is folded into the convolutions, nothing is kept for the parameters' gradients, the interpolated inputs of many
images fill one batch, and the path is integrated by the midpoint rule, whose completeness error is smaller than that of
Gauss-Legendre at the same number of nodes (the integrand has corners, which a rule of high order does not profit from).
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from igkd.attribution.base import Attribution, Engine, as_float, inputs_per_pass
from igkd.convolutions import plain
from igkd.models import ImageClassifier

Gradients = Callable[[Tensor, Tensor], Tensor]
"""Normalised float32 (N, 3, H, W) and targets int64 (N,) to the gradients of the targets' logits, float32 (N, 3, H, W)."""


class FastIntegratedGradients:
    """Integrated gradients by autograd or, with OpenVINO, by a compiled graph of forward and backward pass."""

    def __init__(self, model: ImageClassifier, steps: int, engine: Engine) -> None:
        self.model, self.steps, self.engine = model, steps, engine
        self.device = next(model.parameters()).device
        self.network = folded(model)
        self._gradients: dict[tuple[torch.Size, int], Gradients] = {}

    def __call__(self, pixels: Tensor, labels: Tensor, ids: Tensor) -> Attribution:
        x = self.model.normalise(as_float(pixels).to(self.device))
        targets = labels.to(self.device)
        size = inputs_per_pass(self.device.type, x.shape[-2] * x.shape[-1])
        if self.engine in ("openvino", "openvino-bf16"):
            size *= torch.get_num_threads()
        with torch.inference_mode():
            logits = torch.cat([self.network(batch) for batch in x.split(size)])
            origin = self.network(torch.zeros_like(x[:1]))
        attributions = x * mean_gradients(self._for_shape(x.shape[1:], size), x, targets, self.steps, size)
        rise = (logits - origin).gather(1, targets[:, None])[:, 0]
        delta = attributions.sum(dim=(1, 2, 3)) - rise
        return Attribution(*(part.float().cpu() for part in (attributions.abs().sum(dim=1), delta, logits)))

    def _for_shape(self, shape: torch.Size, size: int) -> Gradients:
        """The gradient function for images of a shape, made when it is first needed."""
        if (shape, size) not in self._gradients:
            if self.engine in ("openvino", "openvino-bf16"):
                from igkd.attribution.openvino import compiled_gradients  # an optional dependency

                backward = torch.bfloat16 if self.engine == "openvino-bf16" else torch.float32
                self._gradients = {(shape, size): compiled_gradients(self.network, size, shape, backward)}
            else:
                self._gradients = {(shape, size): autograd_gradients(self.network)}
        return self._gradients[shape, size]


def mean_gradients(gradients: Gradients, x: Tensor, targets: Tensor, steps: int, size: int) -> Tensor:
    """The mean gradient on the straight path from 0 to x, by the midpoint rule.

    Args:
        gradients: of `size` inputs at once.
        x: normalised float32 (B, 3, H, W).
        targets: int64 (B,).
        steps: nodes of each image.
        size: inputs in a pass; the nodes of all images are laid end to end and cut into passes.

    Returns:
        float32 (B, 3, H, W).
    """
    total = torch.zeros_like(x)
    for start in range(0, len(x) * steps, size):
        index = torch.arange(start, min(start + size, len(x) * steps), device=x.device)
        image, node = index // steps, index % steps
        alpha = ((node + 0.5) / steps).view(-1, 1, 1, 1)
        total.index_add_(0, image, gradients(alpha * x[image], targets[image]))
    return total / steps


def autograd_gradients(network: nn.Module) -> Gradients:
    """Gradients by torch, on the network's device; in full float32, since a rounder forward pass moves the corners of ReLU6."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)

    def gradients(x: Tensor, targets: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            chosen = network(x).gather(1, targets[:, None]).sum()
            return torch.autograd.grad(chosen, x)[0]

    return gradients


class Clamp(torch.autograd.Function):
    """ReLU6 whose derivative is read off its output: what came in need not be kept, nor written at all where it is fused."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(0, 6)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.where((y > 0) & (y < 6), gradients[0], 0.0)


class ClampedReLU6(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        clamped: Tensor = Clamp.apply(x)
        return clamped


class _FromNormalised(nn.Module):
    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.from_normalised(x)


def folded(model: ImageClassifier) -> nn.Module:
    """The function `from_normalised` as a network of its own, in evaluation mode: batch norms folded, no parameter gradients.

    Equal to the model up to rounding; needs a model that torch.fx can trace, as torchvision's are.
    """
    network: nn.Module = fuse(plain(copy.deepcopy(_FromNormalised(model)).eval()))
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU6):
            network.set_submodule(name, ClampedReLU6())
    return network
