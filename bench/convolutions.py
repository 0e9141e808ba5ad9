"""Tells whether torch still needs `networks.layers.StridedDepthwise`, by timing forward and backward pass with and without it."""

import copy
import statistics
import time

import torch
from torch import Tensor, nn

from igkd.base import provenance
from igkd.networks.layers import StridedDepthwise
from igkd.training.execution import multiplies_in_bfloat16

CHANNELS, SIDE, BATCH, ROUNDS = 144, 32, 128, 7


def step(layer: nn.Module, x: Tensor) -> float:
    """Seconds of one forward and backward pass under bfloat16 autocast."""
    begin = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.backward(torch.ones_like(y))
    return time.perf_counter() - begin


def main() -> None:
    print(provenance.machine())
    if multiplies_in_bfloat16(torch.device("cpu")):
        plain = nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1, groups=CHANNELS, bias=False).to(memory_format=torch.channels_last)
        ours = copy.deepcopy(plain)
        ours.__class__ = StridedDepthwise
        x = torch.rand(BATCH, CHANNELS, SIDE, SIDE).to(torch.bfloat16).contiguous(memory_format=torch.channels_last).requires_grad_()
        times = [(step(plain, x), step(ours, x)) for _ in range(ROUNDS)][1:]
        before, after = (1000 * statistics.median(values) for values in zip(*times, strict=True))
        verdict = "still needed" if before > after else "no longer needed"
        print(f"strided depthwise layer in bfloat16: plain {before:.1f} ms, StridedDepthwise {after:.1f} ms: {verdict}")
    else:
        print("StridedDepthwise: this processor has no bfloat16 and cannot tell")


if __name__ == "__main__":
    main()
