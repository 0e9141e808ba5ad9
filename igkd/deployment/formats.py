"""Formats of exported files: ONNX in float32 or static int8, or a torch.export program.

The input is pixels as a decoder gives them: uint8 (batch, H, W, 3), RGB, 0 to 255, with any batch size; scaling to [0, 1] and
normalisation are part of the graph. The output is logits, float32 (batch, classes). The file's metadata say this, too, with the class
names: `metadata_props` of an ONNX file, `extra/igkd.json` in a torch.export archive.
"""

import importlib.metadata
import io
import json
import platform
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from igkd.base.provenance import processor
from igkd.networks.network import Classifier, Deployed, NetworkSpec

OPSET = 18
"""The oldest opset that torch's exporter writes; runtimes from 2023 on can read it (ONNX Runtime 1.14)."""
INPUT, OUTPUT = "pixels", "logits"
CARD = "igkd.json"
"""Name of the metadata in a torch.export archive."""
Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]
Module = TypeVar("Module", bound=nn.Module)


def describe(spec: NetworkSpec, facts: dict[str, Any]) -> dict[str, str]:
    """The metadata of a file: strings; lists and objects are encoded as JSON.

    Args:
        facts: further entries (JSON values), such as the result of the check.
    """
    height, width = spec.image_shape
    told: dict[str, Any] = {
        "classes": list(spec.classes),
        "input": f"{INPUT}: uint8 (batch, {height}, {width}, 3), RGB pixels as decoded and turned upright, 0 to 255",
        "output": f"{OUTPUT}: float32 (batch, {len(spec.classes)}), the largest is the answer; softmax makes them probabilities",
        "scaling": {"short_side": spec.short_side, "interpolation": spec.interpolation},
        "normalisation": {"scale": 1 / 255, "mean": list(spec.mean), "std": list(spec.std), "in_graph": True},
        "igkd": importlib.metadata.version("igkd"),
    } | facts
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}


def to_torch_export(model: Classifier) -> torch.export.ExportedProgram:
    """The network's graph in torch's own operators, for any batch size."""
    return _traced(Deployed(model), model.spec)


def _traced(network: Deployed, spec: NetworkSpec) -> torch.export.ExportedProgram:
    # The example must have two images: torch would treat a batch of one as a constant.
    example = torch.zeros(2, *spec.image_shape, 3, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it contains paths of this machine
    return program


def archive(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    """The bytes of a .pt2 file for torch.export.load. Load only files of your own with that: it runs code in them."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={CARD: json.dumps(metadata)})
    return buffer.getvalue()


def to_onnx(model: Classifier) -> onnx.ModelProto:
    """The network as ONNX: opset OPSET, float32, only standard operators, weights included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxscript and torch call deprecated functions
        network, moved = Deployed(model), pool_last(Deployed(model))
        traced = _traced(moved if alike(network, moved, model.spec.image_shape) else network, model.spec)
        program = torch.onnx.export(traced, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    assert program is not None
    return _tidied(program.model_proto)


def pool_last(network: Module) -> Module:
    """Move max poolings behind the batch normalisation and ReLU that follow them in an `nn.Sequential`, in place; returns the network.

    A convolution before them then takes up both, and in int8 no layer is left in float32. The function stays the same: both rise with their
    input, as far as the normalisation's weights are positive (others are left alone), so that the largest value stays the largest. It is
    another where a network uses what a part of the `nn.Sequential` gives: see `alike`.

    Args:
        network: in evaluation mode.
    """
    for block in network.modules():
        if type(block) is nn.Sequential:
            for first in reversed(range(len(block) - 1)):
                for place in range(first, len(block) - 1):
                    if type(block[place]) is not nn.MaxPool2d or not _rises(block[place + 1]):
                        break
                    block[place], block[place + 1] = block[place + 1], block[place]
    return network


def alike(network: nn.Module, other: nn.Module, shape: tuple[int, int]) -> bool:
    """Whether two networks of pixels, uint8 (B, H, W, 3), give the same logits of random ones but for rounding; False if the second fails.

    Args:
        shape: (H, W).
    """
    pixels = torch.randint(0, 256, (4, *shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(pixels)
        try:
            return torch.allclose(other(pixels), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        except Exception:  # the network may be anyone's, and look at layers that are others here
            return False


def _rises(layer: nn.Module) -> bool:
    """Whether a layer is a function of each value that never falls."""
    if type(layer) is nn.BatchNorm2d:
        return layer.track_running_stats and (layer.weight is None or bool((layer.weight > 0).all()))
    return type(layer) is nn.ReLU


def saturates() -> bool:
    """Whether weights must be reduced to 7 bits: x86 processors without VNNI add two int8 products in 16 bits, which may overflow.

    See https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html on `reduce_range`.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    flags = set(processor().get("flags", "").split())
    return bool(flags) and not flags & {"avx512_vnni", "avx_vnni"}


def to_int8(network: onnx.ModelProto, calibration: Pixels) -> onnx.ModelProto:
    """Quantise a network to static int8: QDQ operators, uint8 activations, int8 weights with one scale for each channel.

    Args:
        network: from `to_onnx`.
        calibration: uint8 (N, H, W, 3), N at least 1, training images. An activation's range is its minimum to maximum over these.
    """
    with tempfile.TemporaryDirectory(prefix="igkd-") as directory:
        plain, inferred, quantised = (str(Path(directory) / name) for name in ("plain.onnx", "inferred.onnx", "int8.onnx"))
        onnx.save(network, plain)
        # Skip ONNX Runtime's optimisation: its fused operators are not part of the ONNX standard.
        quant_pre_process(plain, inferred, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            inferred,
            quantised,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=saturates(),
        )
        return _tidied(onnx.load(quantised))


def with_metadata(network: onnx.ModelProto, metadata: dict[str, str]) -> bytes:
    """The bytes of an ONNX file, after checking the network against the standard."""
    del network.metadata_props[:]
    onnx.helper.set_model_props(network, metadata)
    onnx.checker.check_model(network, full_check=True)
    return bytes(network.SerializeToString())


def run_onnx(network: onnx.ModelProto, pixels: Pixels, batch_size: int = 250) -> Logits:
    """Logits float32 (N, classes) of uint8 pixels (N, H, W, 3), by ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    starts = range(0, len(pixels), batch_size)
    return np.concatenate([session.run([OUTPUT], {INPUT: pixels[i : i + batch_size]})[0] for i in starts])


def run_torch_export(data: bytes, pixels: Pixels, batch_size: int = 250) -> Logits:
    """Logits float32 (N, classes) of uint8 pixels (N, H, W, 3), by torch, from a .pt2 archive, which must be one's own."""
    program = torch.export.load(io.BytesIO(data)).module()
    with torch.inference_mode():
        return torch.cat([program(part) for part in torch.from_numpy(pixels).split(batch_size)]).numpy()


def _tidied(network: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what the tools leave behind: stack traces with paths of this machine, and operator domains that are not used."""
    graph = network.graph
    used = {node.domain for node in graph.node}
    domains = [(one.domain, one.version) for one in network.opset_import if one.domain in used]
    del network.opset_import[:], network.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    network.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in domains)
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return onnx.shape_inference.infer_shapes(network, strict_mode=True)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives ONNX Runtime the calibration images, one batch a call."""

    def __init__(self, pixels: Pixels, batch_size: int = 64) -> None:
        self.batches: Iterator[Pixels] = (pixels[i : i + batch_size] for i in range(0, len(pixels), batch_size))

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}
