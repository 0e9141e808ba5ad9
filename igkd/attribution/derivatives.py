"""A network's gradient as a graph of forward operations alone, which is all that OpenVINO knows.

torch can express most derivatives so; those of convolutions and poolings are here.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
# What torch expresses by forward operations. A batch normalisation is there only where it was not folded into a convolution, as after a
# pooling.
ACTIVATIONS = [
    aten.threshold_backward,
    aten.hardtanh_backward,
    aten.sigmoid_backward,
    aten.silu_backward,
    aten.gelu_backward,
    aten.hardswish_backward,
    aten.hardsigmoid_backward,
]
OTHER_NAMES = {aten._unsafe_view.default: aten.view.default, aten._adaptive_avg_pool2d.default: aten.adaptive_avg_pool2d.default}
"""What OpenVINO calls operations of torch's that it does not know by their names."""
NORMALISATIONS = [
    aten.native_batch_norm,
    aten.native_batch_norm_backward,
    aten.native_group_norm,
    aten.native_group_norm_backward,
]
# Attention and layer normalisation are not among them: vit_b_16 could be translated so, but its graph took more than 23 GB of memory.


def gradient_graph(network: nn.Module, x: Tensor, chosen: Tensor, backward: torch.dtype) -> torch.fx.GraphModule:
    """A graph that takes (x, chosen) and gives d (network(x) * chosen).sum() / dx, made only of forward operations."""

    def gradient(x: Tensor, chosen: Tensor) -> Tensor:
        pull_back = torch.func.vjp(network, x)[1]
        result: Tensor = pull_back(chosen)[0]
        return result.to(x.dtype)

    table = get_decompositions([*ACTIVATIONS, *NORMALISATIONS]) | {
        aten.convolution_backward.default: functools.partial(_convolution_backward, backward),
        aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
        aten.avg_pool2d_backward.default: _average_pool_backward,
        aten._adaptive_avg_pool2d_backward.default: _adaptive_average_pool_backward,
    }
    graph = make_fx(gradient, decomposition_table=table)(x, chosen)
    for node in graph.graph.nodes:
        if node.target is aten._to_copy.default:
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.kwargs["dtype"]), {}
        node.target = OTHER_NAMES.get(node.target, node.target)
        # `_max_pool_backward` does without the places of the maxima, and OpenVINO computes the maxima alone 50 times faster.
        if node.target is aten.max_pool2d_with_indices.default and all(user.args[1] == 0 for user in node.users):
            node.target = aten.max_pool2d.default
            for value in list(node.users):
                value.replace_all_uses_with(node)
                graph.graph.erase_node(value)
    graph.recompile()
    return graph


def _convolution_backward(
    dtype: torch.dtype,
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor, None, None]:
    """The gradient with respect to a convolution's input, in `dtype`.

    With stride 1 it is a convolution with the rotated kernel, computed in `dtype`; otherwise a transposed convolution, computed in
    float32, because OpenVINO's depthwise transposed convolution in bfloat16 is 25 times slower.
    """
    assert not transposed and wanted == [True, False, False]
    if all(s == 1 for s in stride):
        outputs, inputs, height, width = weight.shape
        turned = weight.reshape(groups, outputs // groups, inputs, height, width).transpose(1, 2).flip(3, 4)
        turned = turned.reshape(groups * inputs, outputs // groups, height, width)
        border = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
        if min(border) >= 0:
            turned, gradient = turned.to(dtype), gradient.to(dtype)
            return aten.convolution(gradient, turned, None, [1, 1], border, dilation, False, [0, 0], groups), None, None
    reached = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1
        for n, s, p, d, k in zip(gradient.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
    ]
    missing = [n - r for n, r in zip(x.shape[2:], reached, strict=True)]
    gradient = gradient.to(weight.dtype)
    return aten.convolution(gradient, weight, None, stride, padding, dilation, True, missing, groups).to(dtype), None, None


def _max_pool_backward(
    gradient: Tensor,
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """The gradient with respect to a max pooling's input: each output's gradient goes to the input that was the maximum."""
    found = _first_maxima(x, gradient.shape[2:], kernel, stride or kernel, padding, dilation, ceil_mode)
    flat = torch.zeros_like(x).flatten(2).scatter_add(2, found.flatten(2), gradient.flatten(2).to(x.dtype))
    return flat.view(x.shape)


def _average_pool_backward(
    gradient: Tensor,
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """The gradient with respect to an average pooling's input."""
    means = []
    for outputs, size, step, border, length in zip(
        gradient.shape[2:], _pair(kernel), _pair(stride or kernel), _pair(padding), x.shape[2:], strict=True
    ):
        begin = torch.arange(outputs) * step - border
        end = (begin + size).clamp(max=length + border)  # a window of ceil_mode may reach beyond the border, which nobody counts
        inside = end.clamp(max=length) - begin.clamp(min=0)
        counts = torch.ones(outputs) if divisor else end - begin if count_include_pad else inside
        means.append(_means(begin, end, counts, length))
    return _from_means(gradient.to(x.dtype) / (divisor or 1), means[0], means[1])


def _adaptive_average_pool_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient with respect to an adaptive average pooling's input."""
    means = []
    for outputs, length in zip(gradient.shape[2:], x.shape[2:], strict=True):
        begin = torch.arange(outputs) * length // outputs
        end = -(torch.arange(1, outputs + 1) * -length // outputs)
        means.append(_means(begin, end, end - begin, length))
    return _from_means(gradient.to(x.dtype), means[0], means[1])


def _means(begin: Tensor, end: Tensor, counts: Tensor, length: int) -> Tensor:
    """The matrix (outputs, length) that takes the mean of the pixels from `begin` to `end` (exclusive) of a line, for each output."""
    place = torch.arange(length)
    return ((begin[:, None] <= place) & (place < end[:, None])) / counts[:, None]


def _from_means(gradient: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The gradient (B, C, H, W) with respect to x, from that of rows @ x @ columns.T, which is how a pooling by means can be written."""
    return rows.T.to(gradient.dtype) @ gradient @ columns.to(gradient.dtype)


def _first_maxima(
    x: Tensor, shape: torch.Size, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    """The place in x, counted row by row, of each window's first maximum: what `max_pool2d_with_indices` gives beside the maxima, but
    OpenVINO computes it 50 times slower than these.

    Returns:
        int64 (B, C, *shape).
    """
    (down, across), (rows, columns), (height, width) = _pair(kernel), shape, x.shape[2:]
    (up, left), (step, stride_across), (gap, gap_across) = _pair(padding), _pair(stride), _pair(dilation)
    largest = aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)[0]
    below = max(0, (rows - 1) * step + (down - 1) * gap + 1 - up - height)
    right = max(0, (columns - 1) * stride_across + (across - 1) * gap_across + 1 - left - width)
    padded = aten.constant_pad_nd(x, [left, right, up, below], -torch.inf)
    corner = (torch.arange(rows) * step - up)[:, None] * width + torch.arange(columns) * stride_across - left
    found = torch.zeros_like(largest, dtype=torch.int64)
    for place in reversed(range(down * across)):
        i, j = place // across * gap, place % across * gap_across
        values = padded[:, :, i : i + (rows - 1) * step + 1 : step, j : j + (columns - 1) * stride_across + 1 : stride_across]
        found = torch.where(values == largest, corner + i * width + j, found)
    return found


def _pair(values: list[int]) -> list[int]:
    """The two numbers of a pooling's setting, which torch may give as one for both."""
    return values if len(values) == 2 else values * 2
