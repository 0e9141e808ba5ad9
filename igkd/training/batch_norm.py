"""Batch normalisation over the images of all workers, so that a run does not depend on how many there are.

torch's SyncBatchNorm is for GPUs only; this one works on any device that the process group supports.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from igkd.base.errors import UserError
from igkd.networks.homogeneous import ScaleNorm2d


class _Summed(torch.autograd.Function):
    """The sum of a tensor over all workers. So is its gradient: the losses of all workers depend on each worker's tensor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient: Tensor = _Summed.apply(gradients[0])
        return gradient


class _Normalise(torch.autograd.Function):
    """(x - mean) / std over the batches of all workers; also returns mean, variance and count."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.float()
        over = [d for d in range(x.dim()) if d != 1]
        variance, mean = torch.var_mean(wide, dim=over, correction=0)
        count = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
        mean, variance = mean.double(), variance.double()
        sums = torch.cat([count, count * mean, count * (variance + mean**2)])
        dist.all_reduce(sums)
        count, first, second = sums[:1], *sums[1:].chunk(2)
        mean, variance = first / count, (second / count - (first / count) ** 2).clamp_min(0)
        shift, factor = mean.float(), (variance + eps).rsqrt().float()
        ctx.save_for_backward(x, weight, shift, factor, count)
        ctx.eps = eps
        scale = weight * factor
        out = wide * _wide(scale, x) + _wide(bias - shift * scale, x)
        ctx.mark_non_differentiable(mean, variance, count)
        return out.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, shift, factor, count = ctx.saved_tensors
        gradient = gradients[0].float()
        over = [d for d in range(x.dim()) if d != 1]
        if torch.is_grad_enabled():  # this gradient will be differentiated, too: mean and deviation must then be functions of x
            wide, n = x.float(), count.float()
            shift = _Summed.apply(wide.sum(dim=over)) / n
            factor = (_Summed.apply((wide - _wide(shift, x)).square().sum(dim=over)) / n + ctx.eps).rsqrt()
        unit = (x.float() - _wide(shift, x)) * _wide(factor, x)
        local = torch.cat([gradient.sum(dim=over), (gradient * unit).sum(dim=over)])
        mean, slope = (_Summed.apply(local) / count.float()).chunk(2)
        below = _wide(weight * factor, x) * (gradient - _wide(mean, x) - unit * _wide(slope, x))
        bias, scale = local.chunk(2)  # data parallelism sums these over the workers
        return below.to(x.dtype), scale, bias, None


def _wide(channels: Tensor, x: Tensor) -> Tensor:
    """Reshape (C,) so that it broadcasts over (B, C, ...) by channel."""
    return channels.view(-1, *[1] * (x.dim() - 2))


class SharedStatistics(_BatchNorm):
    """A batch normalisation whose training statistics are over the batches of all workers."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        ones = torch.ones_like(self.running_mean)
        weight, bias = (ones if self.weight is None else self.weight), (0 * ones if self.bias is None else self.bias)
        out, mean, variance, count = _Normalise.apply(input, weight, bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            # Without a momentum, torch averages over all batches so far.
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), momentum)
        normalised: Tensor = out
        return normalised


class SharedBatchNorm1d(SharedStatistics, nn.BatchNorm1d):
    pass


class SharedBatchNorm2d(SharedStatistics, nn.BatchNorm2d):
    pass


class SharedBatchNorm3d(SharedStatistics, nn.BatchNorm3d):
    pass


class SharedSyncBatchNorm(SharedStatistics, nn.SyncBatchNorm):
    """Replaces torch's SyncBatchNorm, which does not support CPUs; equal to it in evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return super().forward(input)
        return nn.functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class SharedActivated(SharedStatistics):
    """Replaces timm's BatchNormAct2d, which is a batch norm, a dropout and an activation in one layer."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        normalised = super().forward(input)
        if not self.training:  # that was timm's own forward pass
            return normalised
        activated: Tensor = self.act(self.drop(normalised))
        return activated


class SharedScaleNorm2d(ScaleNorm2d):
    """A normalisation by the root mean square whose training statistics are over the batches of all workers."""

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        squares, count = super().sums(x)
        total: Tensor = _Summed.apply(torch.cat([squares, squares.new_tensor([count])]))
        return total[:-1], total[-1:]


SHARED: dict[type[nn.Module], type[SharedStatistics]] = {
    nn.BatchNorm1d: SharedBatchNorm1d,
    nn.BatchNorm2d: SharedBatchNorm2d,
    nn.BatchNorm3d: SharedBatchNorm3d,
    nn.SyncBatchNorm: SharedSyncBatchNorm,
}


def share_batch_norms(network: nn.Module) -> nn.Module:
    """Make every batch normalisation of a network share its statistics, in place, keeping parameters and statistics; returns the network.

    This covers torch's batch norms, subclasses with the same forward pass, and timm's with an activation. Layers without batch statistics
    (frozen batch norms, layer norms, group norms) are not changed.

    Raises:
        UserError: a layer computes batch statistics in another way, so that several workers would give another result than one.
    """
    timm = sys.modules.get("timm.layers")  # loaded if the network is timm's
    for name, module in network.named_modules():
        if isinstance(module, SharedStatistics | SharedScaleNorm2d):
            continue
        if type(module) is ScaleNorm2d:
            module.__class__ = SharedScaleNorm2d
            continue
        if timm is not None and type(module) is timm.BatchNormAct2d:
            module.__class__ = type("SharedBatchNormAct2d", (SharedActivated, timm.BatchNormAct2d), {})
            continue
        kind = next((kind for kind in SHARED if isinstance(module, kind)), None)
        if why := _why_not_shared(module, kind):
            raise UserError(
                f"the layer {name or 'itself'} ({type(module).__name__}) {why}: its statistics would be of each worker's images alone, "
                "which is another run than with one worker; train with --workers 1"
            )
        if kind is not None:
            exact = type(module) is kind
            module.__class__ = SHARED[kind] if exact else type(f"Shared{type(module).__name__}", (SHARED[kind], type(module)), {})
    return network


def _why_not_shared(module: nn.Module, kind: type[nn.Module] | None) -> str:
    """Why a layer's batch statistics cannot be shared, as the end of a sentence; "" if they can be, or if it has none."""
    if kind is None:
        # Other layers with running statistics: torch's lazy batch norms, instance norms that track statistics, batch norms written from
        # scratch. Frozen batch norms have running statistics, too, but as constants, and no trained weight.
        tracks = module._buffers.get("running_mean") is not None or isinstance(module, _BatchNorm)
        frozen = not any(True for _ in module.parameters(recurse=False)) and "num_batches_tracked" not in module._buffers
        return "keeps statistics in a way of its own" if tracks and not frozen else ""
    assert isinstance(module, _BatchNorm)
    if type(module).forward is not kind.forward or type(module).__call__ is not nn.Module.__call__ or "forward" in vars(module):
        return "is a batch norm with a forward pass of its own"
    if not module.track_running_stats or module.running_mean is None:
        return "is a batch norm without running statistics"
    if isinstance(module, nn.SyncBatchNorm) and module.process_group is not None:
        return "shares its statistics with some workers"
    return ""
