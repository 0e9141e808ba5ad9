"""Forward and backward pass as one graph, compiled by OpenVINO: the fastest way to compute gradients on a CPU."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import openvino
import openvino.frontend
import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from igkd.networks.network import Classifier

aten = torch.ops.aten
ACTIVATIONS = [
    aten.threshold_backward,
    aten.hardtanh_backward,
    aten.sigmoid_backward,
    aten.silu_backward,
    aten.gelu_backward,
    aten.hardswish_backward,
    aten.hardsigmoid_backward,
]
NORMALISATIONS = [aten.native_batch_norm, aten.native_batch_norm_backward]


SHARE = 32
"""Inputs in one request of a forward pass. Fixed for any number of threads, since rounding depends on it."""


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compiled_gradients(network: nn.Module, size: int, shape: torch.Size, backward: torch.dtype = torch.float32) -> Any:
    """Compile a function that computes gradients of target logits.

    Args:
        network: takes normalised float32 (N, 3, H, W), gives logits (N, classes); on the CPU.
        size: inputs in one pass, divided among the threads; a shorter pass is padded.
        shape: (3, H, W) of the inputs.
        backward: dtype of the backward pass. The forward pass is always float32, since rounding would move the kinks of ReLU6.

    Returns:
        a function that takes inputs (N, 3, H, W) and targets int64 (N,), N at most `size`, and gives gradients (N, 3, H, W).
    """
    streams = max(1, min(torch.get_num_threads(), size))
    share = -(-size // streams)
    x = torch.zeros(share, *shape)
    with torch.no_grad():
        chosen = torch.zeros_like(network(x))
    graph = gradient_graph(network, x, chosen, backward)
    compiled = _compiled(graph, (x, chosen), streams)
    requests = [(compiled.create_infer_request(), torch.zeros_like(x), torch.zeros_like(chosen)) for _ in range(streams)]

    def gradients(inputs: Tensor, targets: Tensor) -> Tensor:
        parts = list(zip(requests, inputs.split(share), targets.split(share), strict=False))
        for (request, x, chosen), some, their in parts:
            x[: len(some)] = some
            chosen.zero_()
            chosen[torch.arange(len(some)), their] = 1
            request.start_async([x.numpy(), chosen.numpy()], share_inputs=True)
        for (request, _, _), _, _ in parts:
            request.wait()
        return torch.cat([torch.from_numpy(r.get_output_tensor(0).data[: len(some)].copy()) for (r, _, _), some, _ in parts])

    return gradients


def compiled_forward(model: Classifier, size: int, shape: tuple[int, int], bfloat16: bool = False) -> Callable[[Tensor], Tensor]:
    """Compile a network's forward pass.

    Args:
        model: in evaluation mode, on the CPU.
        size: inputs in one pass.
        shape: (H, W) of the images.
        bfloat16: compute in bfloat16 where OpenVINO can; else in float32.

    Returns:
        a function that takes uint8 (size, 3, H, W) and gives logits float32 (size, classes).
    """
    share = min(size, SHARE)
    compiled = _compiled(model, (torch.zeros(share, 3, *shape),), max(1, torch.get_num_threads()), "bf16" if bfloat16 else "f32")
    requests = [(compiled.create_infer_request(), torch.zeros(share, 3, *shape)) for _ in range(-(-size // share))]

    def forward(pixels: Tensor) -> Tensor:
        parts = list(zip(requests, pixels.split(share), strict=False))
        for (one, x), some in parts:
            x[: len(some)] = some.float().div(255)
            one.start_async([x.numpy()], share_inputs=True)
        for (one, _), _ in parts:
            one.wait()
        return torch.cat([torch.from_numpy(one.get_output_tensor(0).data[: len(some)].copy()) for (one, _), some in parts])

    return forward


def _compiled(network: nn.Module, inputs: tuple[Tensor, ...], streams: int, precision: str = "f32") -> Any:
    """Compile a network for inputs of these shapes, with one stream for each thread.

    Raises:
        RuntimeError: OpenVINO does not support an operation of the network.
    """
    with warnings.catch_warnings(), torch.no_grad():  # without gradients, our own layers use plain operations, which OpenVINO knows
        warnings.simplefilter("ignore")  # OpenVINO reads graphs through torch.jit, which warns that it is deprecated
        try:
            converted = openvino.convert_model(network, example_input=inputs, input=[list(x.shape) for x in inputs])
        except openvino.frontend.OpConversionFailure as error:  # only its last line says which operation is missing
            raise RuntimeError(str(error).strip().splitlines()[-1].strip("- ")) from None
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": streams,
        "NUM_STREAMS": streams,  # one thread for each stream: dividing whole inputs waits less than dividing the work of a layer
        "ENABLE_CPU_PINNING": False,  # pinning would put parallel processes all on the first core
    }
    return openvino.Core().compile_model(converted, "CPU", settings)


def gradient_graph(network: nn.Module, x: Tensor, chosen: Tensor, backward: torch.dtype) -> torch.fx.GraphModule:
    """A graph that takes (x, chosen) and gives d (network(x) * chosen).sum() / dx, made only of forward operations."""

    def gradient(x: Tensor, chosen: Tensor) -> Tensor:
        pull_back = torch.func.vjp(network, x)[1]
        result: Tensor = pull_back(chosen)[0]
        return result.to(x.dtype)

    # OpenVINO knows only forward operations. torch can express the derivatives of activations by them, and a batch normalisation that was
    # not folded into a convolution, as after a pooling; those of other layers are below.
    table = get_decompositions([*ACTIVATIONS, *NORMALISATIONS]) | {
        aten.convolution_backward.default: functools.partial(_convolution_backward, backward),
        aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
    }
    graph = make_fx(gradient, decomposition_table=table)(x, chosen)
    for node in graph.graph.nodes:
        if node.target is aten._to_copy.default:  # OpenVINO knows this operation only by its other name
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.kwargs["dtype"]), {}
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
