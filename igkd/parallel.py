"""Batch normalisation over the images of all workers, so that a run does not depend on how many there are.

torch's SyncBatchNorm is for GPUs only; this one takes any device that the process group does.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Normalise(torch.autograd.Function):
    """(x - mean) / std over the batches of all workers; gives mean, variance and count, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.float()
        variance, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        count = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
        mean, variance = mean.double(), variance.double()
        sums = torch.cat([count, count * mean, count * (variance + mean**2)])
        dist.all_reduce(sums)
        count, first, second = sums[:1], *sums[1:].chunk(2)
        mean, variance = first / count, (second / count - (first / count) ** 2).clamp_min(0)
        shift, factor = mean.float(), (variance + eps).rsqrt().float()
        ctx.save_for_backward(x, weight, shift, factor, count)
        scale = weight * factor
        out = wide * _wide(scale) + _wide(bias - shift * scale)
        ctx.mark_non_differentiable(mean, variance, count)
        return out.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, shift, factor, count = ctx.saved_tensors
        gradient = gradients[0].float()
        unit = (x.float() - _wide(shift)) * _wide(factor)
        local = torch.cat([gradient.sum(dim=(0, 2, 3)), (gradient * unit).sum(dim=(0, 2, 3))])
        sums = local.clone()
        dist.all_reduce(sums)
        mean, slope = (sums / count.float()).chunk(2)
        below = _wide(weight * factor) * (gradient - _wide(mean) - unit * _wide(slope))
        bias, scale = local.chunk(2)  # data parallelism sums these up over the workers
        return below.to(x.dtype), scale, bias, None


def _wide(channels: Tensor) -> Tensor:
    return channels[:, None, None]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all workers' batches together."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        out, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).float(), self.momentum)
        normalised: Tensor = out
        return normalised


def share_batch_norms(network: nn.Module) -> nn.Module:
    """Make every batch normalisation of a network a shared one, in place, keeping its parameters and statistics; gives the network."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
    return network
