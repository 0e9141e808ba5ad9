"""The interface of a term of the loss, and its input."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from igkd.config.optimisation import Objective, Optimisation
from igkd.store.top_logits import TopLogits


@dataclass(frozen=True)
class Step:
    """A student's outputs for the B images of one step, with their labels and the teacher's signals."""

    logits: Tensor
    """float32 (B, classes), the student's logits."""
    labels: Tensor
    """int64 (B,)."""
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Outputs (B, C, h, w) of the student's tapped layers, by path."""
    teacher_logits: Tensor | TopLogits | None = None
    """float32 (B, classes), or the largest of them, if that is what the store has; None if no term needs them."""
    teacher_attention: Tensor | None = None
    """float32 (B, h, w), each of norm 1, cropped and flipped like the student's images; None if no term needs it."""
    teacher_features: Tensor | None = None
    """float32 (B, C, h, w), a live teacher's features of the same crops; None if no term needs them."""
    pixels: Tensor | None = None
    """float32 (B, 3, H, W), the student's input, which its logits can be differentiated by; None if no term does so."""
    origin: Tensor | None = None
    """The baseline of the student's map as a colour in pixels, float32 (1, 3, 1, 1) or (1, 1, 1, 1); None if no term differentiates."""
    teacher_map: Tensor | None = None
    """float32 (B, H, W), the teacher's map of the student's input, or a control; all zeros for images that have none. None if no term needs
    it."""


class Term(nn.Module, abc.ABC):
    """One term of the loss. If it has parameters, they are trained, averaged over workers and saved in the run's state."""

    weight: float
    """Factor in the sum; 0 leaves the term out."""
    taps: tuple[str, ...] = ()
    """Paths of the student's layers whose outputs the term needs."""
    signals: tuple[str, ...] = ()
    """The teacher's signals that the term needs: "logits", "attention", "features", "ig"."""
    every: int = 1
    """The term is computed in every so manyth step of a run, beginning with the first."""
    differentiates: bool = False
    """Whether the term differentiates the logits by the pixels, so that its gradient is a second derivative."""

    @abc.abstractmethod
    def __init__(self, objective: Objective, optimisation: Optimisation) -> None:
        super().__init__()

    @abc.abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The mean of the term over the batch, a scalar, without its weight."""
