"""How a training step is computed: its precision, and whether it is compiled. Neither changes results beyond rounding."""

import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from igkd.base.choices import Precision
from igkd.config.optimisation import Optimisation

Forward = Callable[..., Any]
"""A network's forward pass, called with (pixels) or (pixels, taps)."""


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; without them a CPU emulates it at a tenth of the speed of float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """The precision that `auto` means on a device: bfloat16 if it has instructions for that, else float32; other values are returned."""
    if precision != "auto":
        return precision
    return "bfloat16" if multiplies_in_bfloat16(device) else "float32"


def autocast(optimisation: Optimisation, device: torch.device) -> torch.autocast:
    """The context of a forward pass in the precision that a run has."""
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_precision(optimisation.precision, device) == "bfloat16")


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call on this machine; None if there is none."""
    return next((name for name in (os.environ.get("CXX"), "g++", "clang++") if name and shutil.which(name)), None)


class Compiled:
    """A network's forward pass, compiled at its first call; not compiled if that fails."""

    def __init__(self, network: nn.Module, progress: Callable[[str], None]) -> None:
        """Args:
        progress: called once, with the reason, if the network cannot be compiled.
        """
        self._network, self._progress = network, progress
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns about missing CUDA on machines without a GPU
        # One graph serves all batch sizes: an epoch has two of them, and compiling a graph takes almost a minute.
        self._compiled: Forward | None = torch.compile(network, dynamic=False)
        if next(network.parameters()).device.type == "cpu" and compiler() is None:
            self._give_up("there is no C++ compiler on this machine; install g++, or set CXX")

    @property
    def active(self) -> bool:
        """Whether calls run compiled code."""
        return self._compiled is not None

    def _give_up(self, why: str) -> None:
        self._compiled = None
        self._progress(f"goes on without torch.compile: {why}")

    def __call__(self, pixels: torch.Tensor, *taps: tuple[str, ...]) -> Any:
        if self._compiled is not None:
            torch._dynamo.maybe_mark_dynamic(pixels, 0)
            try:
                return self._compiled(pixels, *taps)
            except Exception as error:  # compilers raise exceptions of any type; an error of the network itself is raised again below
                self._give_up(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return self._network(pixels, *taps)
