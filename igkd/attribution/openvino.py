"""Forward and backward pass as one graph, compiled by OpenVINO: the fastest way to compute gradients on a CPU."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from igkd.attribution.derivatives import gradient_graph
from igkd.networks.network import Classifier

# OpenVINO would tell its makers of each conversion, from a process that it forks. Beside the threads of torch and Ray that process may
# hang, and at its end Python waited for it for ever. Without this package, which is made to look missing here, OpenVINO tells nobody.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
import openvino.frontend  # noqa: E402

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
