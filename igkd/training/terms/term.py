"""What a term of the loss is given, and what it has to offer."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from igkd.config.optimisation import Objective, Recipe


@dataclass(frozen=True)
class Step:
    """What a student made of the B images of one step, and what is known about them."""

    logits: Tensor
    """float32 (B, classes), of the student."""
    labels: Tensor
    """int64 (B,)."""
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    """(B, C, h, w) of the student's layers that terms tap, by path."""
    teacher_logits: Tensor | None = None
    """float32 (B, classes), where a term needs them."""
    teacher_attention: Tensor | None = None
    """float32 (B, h, w), each of norm 1, in the student's view, where a term needs it."""


class Term(nn.Module, abc.ABC):
    """One term of the loss. Parameters of its own are trained, averaged over workers and kept in the run's state."""

    weight: float
    """Factor in the sum; 0 leaves the term out."""
    taps: tuple[str, ...] = ()
    """Paths of the student's layers whose outputs it needs."""
    signals: tuple[str, ...] = ()
    """What it needs of the teacher: "logits", "attention"."""

    @abc.abstractmethod
    def __init__(self, objective: Objective, recipe: Recipe) -> None:
        super().__init__()

    @abc.abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The term without its weight, a scalar: its mean over the batch."""
