"""Replacements for layers whose backward pass is wrong or slow on CPUs, where torch computes by oneDNN, or slow the second time.

They have the weights of the plain layers and, in evaluation, the same operations, so checkpoints and exported files do not depend on them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.grad import conv2d_weight
from torch.overrides import TorchFunctionMode


class Shortcut(nn.Conv2d):
    """A 1x1 convolution with a stride. If there may be a backward pass, the skipped pixels are dropped first and the stride is 1.

    oneDNN's backward pass of the plain layer, channels last with fewer than 16 channels, writes outside its memory: the process dies or
    hangs (https://github.com/uxlfoundation/oneDNN/issues/6035; seen in torch 2.15). Without gradients, as in exported files, this is
    the plain layer.
    """

    evaluates_as = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(input)
        down, right = self.stride
        return F.conv2d(input[:, :, ::down, ::right], self.weight, self.bias)


class StridedDepthwise(nn.Conv2d):
    """A depthwise convolution with a stride that stays in float32 when the rest of the network is in bfloat16 on a CPU.

    oneDNN has no fast backward pass for it in bfloat16 and uses its reference code: 131 ms instead of 15 ms in float32 for one layer of a
    MobileNet-V2, a third of a training step (seen with AMX in torch 2.15). On GPUs, and in float32, this is the plain layer.
    """

    evaluates_as = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(torch.get_autocast_dtype("cpu"))


class _Clamp(torch.autograd.Function):
    """ReLU6 that keeps its output for the backward pass: between 0 and 6 are the same values before and after."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(0, 6)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result: Tensor = torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0, 6)
        return result


class ClampedReLU6(nn.ReLU6):
    """ReLU6 that computes its derivative from its output, to the bit that of the plain layer.

    The layer after it keeps that output anyway; torch's own keeps the input as well, and copies it where it works in place. This one never
    does.
    """

    evaluates_as = nn.ReLU6

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(input)
        clamped: Tensor = _Clamp.apply(input)
        return clamped


def plain(network: nn.Module) -> nn.Module:
    """Turn layers of ours that are torch's in evaluation into those, in place, for tools that check types; returns the network.

    Such a layer's class names torch's layer as `evaluates_as`; if it has a method `settle`, that gives the weights their values first.
    """
    for module in network.modules():
        if "evaluates_as" in vars(type(module)):
            settle = getattr(module, "settle", None)
            if callable(settle):
                settle()
            module.__class__ = vars(type(module))["evaluates_as"]
    return network


def avoid_wrong_kernels(network: nn.Module) -> nn.Module:
    """Turn every 1x1 convolution with a stride into a `Shortcut`, in place, before a backward pass; returns the network."""
    for module in network.modules():
        strided = type(module) is nn.Conv2d and module.kernel_size == (1, 1) and max(module.stride) > 1
        if strided and module.padding == (0, 0) and module.groups == 1:
            module.__class__ = Shortcut
    return network


def avoid_slow_kernels(network: nn.Module) -> nn.Module:
    """Turn every strided depthwise convolution of a network into a `StridedDepthwise` and every ReLU6 into a `ClampedReLU6`, in place;
    returns the network.

    A ReLU6 that works in place is left as it is: a forward pass of anyone's may use its input afterwards.
    """
    for module in network.modules():
        if type(module) is nn.ReLU6 and not module.inplace:
            module.__class__ = ClampedReLU6
        if type(module) is nn.Conv2d and module.groups > 1 and module.groups == module.in_channels and max(module.stride) > 1:
            module.__class__ = StridedDepthwise
    return network


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within this context, a network's forward pass is computed so that its gradient can be differentiated again, and fast.

    torch's fast kernels of attention have no second derivative; its second derivative of grouped convolutions is a loop over the groups,
    nine times as slow for 96 channels.
    """
    with sdpa_kernel(SDPBackend.MATH), _GroupedConvolutions():
        yield


class _GroupedConvolutions(TorchFunctionMode):
    """Computes grouped convolutions of pictures by `_Grouped`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.conv2d:
            return func(*args, **kwargs)
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1} | dict(zip(names, args, strict=False)) | kwargs
        x, bias = given["input"], given["bias"]
        if given["groups"] == 1 or isinstance(given["padding"], str) or x.dim() != 4:
            return func(*args, **kwargs)
        pairs = [(value, value) if isinstance(value, int) else tuple(value) for value in map(given.get, names[3:6])]
        mixed = torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            # Not in bfloat16, for which oneDNN has no fast backward pass, either.
            out = _Grouped.apply(x.float() if mixed else x, given["weight"], *pairs, given["groups"])
            out = out if bias is None else out + bias[:, None, None]
        return out.to(torch.get_autocast_dtype(x.device.type)) if mixed else out


class _Grouped(torch.autograd.Function):
    """A grouped convolution whose gradient by the input is itself a convolution, which torch can differentiate without a loop."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding, dilation, groups
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        (x, weight), (stride, padding, dilation, groups) = ctx.saved_tensors, ctx.how
        # Where the stride does not divide the input, its last pixels are not seen: they are added as output padding.
        extent = [(gradient.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in (0, 1)]
        rest = [x.shape[2 + i] - extent[i] for i in (0, 1)]
        below = F.conv_transpose2d(gradient, weight, None, stride, padding, rest, groups, dilation)
        of_weight = conv2d_weight(x, weight.shape, gradient, stride, padding, dilation, groups)
        return below, of_weight, None, None, None, None
