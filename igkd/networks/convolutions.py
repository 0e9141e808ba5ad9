"""Replacements for convolutions whose backward pass is wrong or slow in oneDNN, which torch uses on CPUs.

They have the weights of the plain layers and, in evaluation, the same operations, so checkpoints and exported files do not depend on them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
    """Turn every strided depthwise convolution of a network into a `StridedDepthwise`, in place; returns the network."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.groups > 1 and module.groups == module.in_channels and max(module.stride) > 1:
            module.__class__ = StridedDepthwise
    return network
