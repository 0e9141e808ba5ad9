"""The process that igkd latency starts for each model: python -m igkd.deployment.timed_process MODEL BATCH THREADS

It loads the model, warms it up and prints {"ready": true}. Then, for each line of standard input with a number of calls, it prints the
milliseconds of each call and the process's peak memory. Errors are printed as {"error": sentence}. An ONNX file is run without importing
torch, as on a device.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from igkd.base.errors import UserError

WARM_UP = 3
NUMPY_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
Call = Callable[[], object]
"""A function that runs one forward pass."""


def timed(call: Call, count: int) -> list[float]:
    """Milliseconds of each of `count` passes; an uncounted pass before them refills the caches, which another model may have used."""
    times = []
    for _ in range(count + 1):
        begin = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - begin))
    return times[1:]


def open_model(model: str, batch: int, threads: int) -> Call:
    """Load a model; gives a function that runs it on random pixels.

    Args:
        model: FILE.onnx, FILE.pt2 (only one's own: torch runs code in it), or what `open_teacher` takes, run by torch unchanged.
        batch: images in one pass.
        threads: number of threads of one pass.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    if model.endswith((".onnx", ".pt2")):
        if not Path(model).is_file():
            raise UserError(f"{model}: there is no such file; make one with `igkd export`")
        return (_open_onnx if model.endswith(".onnx") else _open_program)(model, batch, threads)
    import torch

    from igkd.networks.open import open_teacher

    torch.set_num_threads(threads)
    return torch_call(open_teacher(model)[0], batch)


def torch_call(model: Any, batch: int) -> Call:
    """A forward pass of a `Classifier`, from uint8 pixels to logits like that of an exported file."""
    import torch

    from igkd.networks.network import Deployed

    network, pixels = Deployed(model).to(memory_format=torch.channels_last), torch.from_numpy(_pixels((batch, *model.spec.image_shape, 3)))

    def call() -> object:
        with torch.inference_mode():
            return network(pixels)

    return call


def _open_onnx(model: str, batch: int, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise UserError(f"ONNX Runtime cannot read {model}: {(str(error).splitlines() or [''])[0]}") from None
    (given, *others), shape = session.get_inputs(), session.get_inputs()[0].shape[1:]
    if others or given.type not in NUMPY_TYPES or not all(isinstance(side, int) for side in shape):
        raise UserError(f"{model} is no image classifier: it must have one input of pixels, uint8 or float, of fixed height and width")
    feed = {given.name: _pixels((batch, *shape)).astype(NUMPY_TYPES[given.type])}
    return lambda: session.run(None, feed)


def _open_program(model: str, batch: int, threads: int) -> Call:
    import torch

    torch.set_num_threads(threads)
    try:
        loaded = torch.export.load(model)
        (example,), _ = loaded.example_inputs
        program, pixels = loaded.module(), torch.from_numpy(_pixels((batch, *example.shape[1:]))).to(example.dtype)
    except Exception as error:  # reading a damaged archive raises exceptions of any type
        raise UserError(f"torch.export cannot read {model}: {(str(error).splitlines() or [''])[0]}") from None

    def call() -> object:
        with torch.inference_mode():
            return program(pixels)

    return call


def _pixels(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def peak_mib() -> float:
    """The peak memory of this process, in MiB.

    On Linux from VmHWM, since getrusage includes the parent's memory at the time of the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def main(model: str, batch: str, threads: str) -> None:
    def say(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    try:
        call = open_model(model, int(batch), int(threads))
        timed(call, WARM_UP)
    except Exception as error:  # most often there is too little memory
        say(error=str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return
    say(ready=True)
    for line in sys.stdin:
        times = timed(call, int(line))
        say(milliseconds=times, peak_mib=peak_mib())


if __name__ == "__main__":
    main(*sys.argv[1:])
