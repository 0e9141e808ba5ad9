"""The fast engine for integrated gradients: the same maps with less work.

Batch normalisation is folded into the convolutions if torch.fx can trace the network; no gradients of parameters are computed; one batch
holds interpolated inputs of many images. The path is integrated by the midpoint rule: at the same number of nodes its completeness error
is smaller than that of Gauss-Legendre, because the integrand has kinks, where a rule of high order gains nothing.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from igkd.attribution.base import Attribution, Colour, FromBaseline, Tell, inputs_per_pass, nobody
from igkd.base.choices import Engine
from igkd.base.errors import first_line
from igkd.networks.layers import avoid_slow_kernels, avoid_wrong_kernels, plain
from igkd.networks.network import Classifier

SAME = 1e-3
"""Largest change of a logit by folding, relative to the largest logit; rounding changes far less."""
Gradients = Callable[[Tensor, Tensor], Tensor]
"""Takes normalised inputs float32 (N, 3, H, W) and targets int64 (N,); gives the targets' logits' gradients, float32 (N, 3, H, W)."""

LogitsAndGradients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes the same; gives logits (N, classes) and these gradients."""


class FastIntegratedGradients:
    """Integrated gradients by autograd, or with OpenVINO by one compiled graph of forward and backward pass."""

    def __init__(self, model: Classifier, steps: int, engine: Engine, baseline: Colour | None = None) -> None:
        self.steps, self.engine = steps, engine
        self.original = FromBaseline(model, baseline).eval()
        self._ready: dict[tuple[torch.Size, int], tuple[nn.Module, Gradients]] = {}

    def __call__(self, pixels: Tensor, labels: Tensor, ids: Tensor, tell: Tell = nobody) -> Attribution:
        x = self.original.beyond(pixels)
        targets = labels.to(x.device)
        size = inputs_per_pass(x.device.type, x.shape[-2] * x.shape[-1])
        if self.engine in ("openvino", "openvino-bf16"):
            size *= torch.get_num_threads()
        network, gradients = self._for_shape(x.shape[1:], size)
        with torch.inference_mode():
            logits = torch.cat([network(batch) for batch in x.split(size)])
            origin = network(torch.zeros_like(x[:1]))
        attributions = x * mean_gradients(gradients, x, targets, self.steps, size, tell)
        rise = (logits - origin).gather(1, targets[:, None])[:, 0]
        delta = attributions.sum(dim=(1, 2, 3)) - rise
        return Attribution(*(part.float().cpu() for part in (attributions.abs().sum(dim=1), delta, logits)))

    def _for_shape(self, shape: torch.Size, size: int) -> tuple[nn.Module, Gradients]:
        """The folded network and its gradient function for images of this shape; made at first use and kept."""
        if (shape, size) not in self._ready:
            network, _ = folded(self.original, shape)
            if self.engine in ("openvino", "openvino-bf16"):
                from igkd.attribution.openvino import compiled_gradients  # an optional dependency

                backward = torch.bfloat16 if self.engine == "openvino-bf16" else torch.float32
                gradients: Gradients = compiled_gradients(network, size, shape, backward)
            else:
                gradients = autograd_gradients(network)
            self._ready = {(shape, size): (network, gradients)}
        return self._ready[shape, size]


class OnePass:
    """Maps of a homogeneous network, by torch: input times gradient, with the logits of the same pass.

    They are its integrated gradients, see `homogeneity.is_homogeneous`.
    """

    def __init__(self, model: Classifier, baseline: Colour | None = None) -> None:
        self.original = FromBaseline(model, baseline).eval()
        self._ready: dict[torch.Size, LogitsAndGradients] = {}

    def __call__(self, pixels: Tensor, labels: Tensor, ids: Tensor, tell: Tell = nobody) -> Attribution:
        x = self.original.beyond(pixels)
        if x.shape[1:] not in self._ready:
            self._ready = {x.shape[1:]: logits_and_gradients(folded(self.original, x.shape[1:])[0])}
        targets, size, found = labels.to(x.device), inputs_per_pass(x.device.type, x.shape[-2] * x.shape[-1]), []
        for start in range(0, len(x), size):
            found.append(self._ready[x.shape[1:]](x[start : start + size], targets[start : start + size]))
            tell(min(start + size, len(x)))
        logits, gradients = (torch.cat(parts) for parts in zip(*found, strict=True))
        attributions = x * gradients
        delta = attributions.sum(dim=(1, 2, 3)) - logits.gather(1, targets[:, None])[:, 0]  # the logits of the baseline are 0
        return Attribution(*(part.float().cpu() for part in (attributions.abs().sum(dim=1), delta, logits)))


def mean_gradients(gradients: Gradients, x: Tensor, targets: Tensor, steps: int, size: int, tell: Tell = nobody) -> Tensor:
    """The mean gradient along the straight path from 0 to x, by the midpoint rule.

    Args:
        gradients: called with at most `size` inputs.
        x: normalised float32 (B, 3, H, W).
        targets: int64 (B,).
        steps: nodes of the quadrature, for each image.
        size: inputs in one pass, which may hold nodes of several images.
        tell: called after each pass with the number of images that are done.

    Returns:
        float32 (B, 3, H, W).
    """
    total = torch.zeros_like(x)
    for start in range(0, len(x) * steps, size):
        index = torch.arange(start, min(start + size, len(x) * steps), device=x.device)
        image, node = index // steps, index % steps
        alpha = ((node + 0.5) / steps).view(-1, 1, 1, 1)
        total.index_add_(0, image, gradients(alpha * x[image], targets[image]))
        tell(min(start + size, len(x) * steps) // steps)
    return total / steps


def autograd_gradients(network: nn.Module) -> Gradients:
    """Gradients by torch, on the network's device."""
    both = logits_and_gradients(network)
    return lambda x, targets: both(x, targets)[1]


def logits_and_gradients(network: nn.Module) -> LogitsAndGradients:
    """Logits and gradients by torch, on the network's device.

    In full float32, since a less precise forward pass moves the kinks of ReLU6.
    """
    network = avoid_wrong_kernels(copy.deepcopy(network)).to(memory_format=torch.channels_last)

    def both(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            logits = network(x)
            return logits.detach(), torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), x)[0]

    return both


def plain_map(model: Classifier, pixels: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Maps (B, H, W) of a few images by plain autograd, nothing folded or compiled: the reference that engines are compared with."""
    network = FromBaseline(model, None).eval()
    x = network.beyond(pixels)
    gradients = autograd_gradients(network)
    return (x * mean_gradients(gradients, x, labels.to(x.device), steps, len(x))).abs().sum(dim=1).cpu()


def folded(network: FromBaseline, shape: torch.Size) -> tuple[nn.Module, str]:
    """A copy of the network for inference: batch norms folded into convolutions if possible, no gradients of parameters.

    Args:
        shape: (3, H, W) of the images.

    Returns:
        the copy, equal to the original up to rounding, and why nothing was folded ("" if it was).
    """
    copied, why = _fused(network, shape)
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return avoid_slow_kernels(copied), why


def _fused(network: FromBaseline, shape: torch.Size) -> tuple[nn.Module, str]:
    """`folded` without its last steps; the folding is done by torch.fx."""
    weights = next(network.parameters())
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(weights)
    copied = plain(copy.deepcopy(network))
    try:
        fused: nn.Module = fuse(copied)
        with torch.inference_mode():
            ours, theirs = fused(x).double(), network(x).double()
    except Exception as error:  # torch.fx raises exceptions of any type on a forward that does more than operate on tensors
        return copied, f"torch.fx cannot trace it ({first_line(error)})"
    # A forward that branches on its input's type may be traced without an error, but along the wrong branch: so compare the logits.
    if theirs.isfinite().all() and not (ours - theirs).abs().max() <= SAME * theirs.abs().max():
        return copied, "with its batch norms folded, it has other logits"
    return fused, ""
