"""What computes the teacher's logits of crops: torch or OpenVINO, in float32 or, where that hardly changes them, in bfloat16."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from igkd.base.choices import Forwards, Precision
from igkd.base.errors import UserError
from igkd.networks.network import Classifier

Answer = Callable[[Tensor], Tensor]
"""A teacher's forward pass: takes uint8 (N, 3, H, W), any N, and gives logits float32 (N, classes)."""
PER_PASS = 64
"""Crops in one pass. Always this many, the last pass padded, so that rounding does not depend on what else is computed."""
COMPARED = 500
"""Number of images on which bfloat16 is compared with float32."""
MAX_DIFFERENCE, MIN_AGREEMENT = 0.1, 0.999
"""Limits for bfloat16: largest difference of a logit from float32, and least share of images with the same answer."""


def answering(model: Classifier, engine: Forwards) -> Answer:
    """A teacher's forward pass by an engine; in float32 unless the engine's name says bfloat16.

    Args:
        model: in evaluation mode; for OpenVINO on the CPU.

    Raises:
        UserError: OpenVINO is not installed.
    """
    device = next(model.parameters()).device
    network = model.to(memory_format=torch.channels_last)

    def by_torch(pixels: Tensor) -> Tensor:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            logits: Tensor = network(pixels.to(device).float().div(255).contiguous(memory_format=torch.channels_last))
            return logits.float().cpu()

    one_pass: Answer = by_torch
    if engine != "torch":
        if importlib.util.find_spec("openvino") is None:
            raise UserError(f"these views were begun with {engine}, which is not installed here: pip install 'igkd[openvino]'")
        from igkd.attribution.openvino import compiled_forward  # an optional dependency

        one_pass = compiled_forward(model, PER_PASS, model.spec.image_shape, bfloat16=engine == "openvino-bf16")

    def answer(pixels: Tensor) -> Tensor:
        found = []
        for some in pixels.split(PER_PASS):
            filled = torch.cat([some, some.new_zeros(PER_PASS - len(some), *some.shape[1:])]) if len(some) < PER_PASS else some
            found.append(one_pass(filled)[: len(some)])
        return torch.cat(found) if found else torch.zeros(0, len(model.spec.classes))

    return answer


def check_precision(precision: Precision, gpu: bool) -> None:
    """Check that the views can be computed in this precision here.

    Args:
        gpu: whether they will be computed on GPUs.

    Raises:
        UserError: bfloat16 is asked for, and there are GPUs, no OpenVINO, or no instructions for it.
    """
    if precision != "bfloat16":
        return
    if gpu:
        lack = "the views are computed on GPUs, and there in float32"
    elif importlib.util.find_spec("openvino") is None:
        lack = "it needs OpenVINO (pip install 'igkd[openvino]')"
    else:
        lack = "" if _has_bfloat16() else "this processor has no instructions for it"
    if lack:
        raise UserError(f"--views-precision bfloat16 is not possible: {lack}; leave it out")


def check_begun(precision: Precision, engine: Forwards) -> None:
    """Check that views which were begun with an engine can be continued in the precision that is asked for.

    Raises:
        UserError: they cannot.
    """
    has: Precision = "bfloat16" if engine == "openvino-bf16" else "float32"
    if precision not in ("auto", has):
        raise UserError(
            f"the store's views are in {has}, and all of a store's are alike: leave --views-precision out, or choose another --store"
        )


def choose_forwards(
    model: Classifier, pixels: Tensor, gpu: bool, precision: Precision = "auto", say: Callable[[str], None] = lambda line: None
) -> Forwards:
    """The fastest engine that is exact enough.

    On a CPU that is OpenVINO if it supports the network; in bfloat16 if that is asked for, or by default if the logits of these images are
    within `MAX_DIFFERENCE` of float32 and the share of equal answers is at least `MIN_AGREEMENT`.

    Args:
        model: in evaluation mode, on the CPU.
        pixels: uint8 (N, 3, H, W), real images; N may be 0.
        gpu: whether the views will be computed on GPUs.
        precision: as `--views-precision` has it.
        say: is told how far bfloat16 is from float32, where that is too far.

    Raises:
        UserError: bfloat16 is asked for and not possible.
    """
    check_precision(precision, gpu)
    if gpu or importlib.util.find_spec("openvino") is None:
        return "torch"
    pixels = pixels[:COMPARED]
    try:
        exact = answering(model, "openvino")(pixels)
    except RuntimeError as error:  # the network has an operation that OpenVINO does not support
        return _by_torch(precision, str(error))
    if not close_enough(answering(model, "torch")(pixels), exact):
        return _by_torch(precision, "its logits are not torch's")
    if precision == "float32" or not _has_bfloat16():
        return "openvino"
    try:
        rounded = answering(model, "openvino-bf16")(pixels)
    except RuntimeError as error:
        return _by_torch(precision, str(error))
    if close_enough(exact, rounded):
        return "openvino-bf16"
    difference, other = distance(exact, rounded)
    found = f"bfloat16 changes a logit of {len(pixels)} images by up to {difference:.2f} and {other:.1%} of the answers"
    if precision == "bfloat16":
        say(f"{found}; used all the same, as asked")
        return "openvino-bf16"
    allowed = f"allowed are {MAX_DIFFERENCE} and {1 - MIN_AGREEMENT:.1%}"
    say(f"in float32, since {found} ({allowed}); --views-precision bfloat16 takes it all the same, and may be several times as fast")
    return "openvino"


def _by_torch(precision: Precision, why: str) -> Forwards:
    """Fall back to torch, which computes in float32.

    Raises:
        UserError: bfloat16 is asked for.
    """
    if precision == "bfloat16":
        raise UserError(f"--views-precision bfloat16 is not possible: OpenVINO cannot run this teacher ({why}); leave it out")
    return "torch"


def _has_bfloat16() -> bool:
    from igkd.attribution.openvino import has_bfloat16  # an optional dependency

    return has_bfloat16()


def distance(exact: Tensor, rounded: Tensor) -> tuple[float, float]:
    """The largest difference of logits (N, classes), and the share of the images whose answer is another; zeros if N is 0."""
    if not len(exact):
        return 0.0, 0.0
    return (exact - rounded).abs().max().item(), (exact.argmax(1) != rounded.argmax(1)).float().mean().item()


def close_enough(exact: Tensor, rounded: Tensor) -> bool:
    """Whether logits (N, classes) are within `MAX_DIFFERENCE`, and answers equal for `MIN_AGREEMENT` of the images; True if N is 0."""
    difference, other = distance(exact, rounded)
    return difference <= MAX_DIFFERENCE and 1 - other >= MIN_AGREEMENT
