"""The term `map`: the student's input-gradient map is to resemble the teacher's stored map of the same crop."""

import torch
import torch.nn.functional as F
from torch import Tensor

from igkd.attribution.attention import normalise_map
from igkd.config.optimisation import Objective, Optimisation
from igkd.training.terms.term import Step, Term


def input_gradient_map(logits: Tensor, labels: Tensor, pixels: Tensor, origin: Tensor) -> Tensor:
    """Input x gradient of the true label's logit: |(x - x') dF / dx|, summed over channels, as the maps of a store are.

    It can be differentiated again. Where a network normalises over the batch, the gradient includes what an image does to the others.

    Args:
        logits: float (B, classes), computed from `pixels`.
        labels: int64 (B,).
        pixels: float (B, 3, H, W) in [0, 1], with requires_grad.
        origin: the baseline x' in pixels, float (1, 3, 1, 1) or (1, 1, 1, 1).

    Returns:
        float (B, H, W), in units of a logit, not negative.
    """
    explained = logits.gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(explained, pixels, create_graph=True)
    return ((pixels.detach() - origin) * gradient).abs().sum(dim=1)


def map_distance(student: Tensor, teacher: Tensor, cell: int) -> Tensor:
    """Mean over the batch of 1 - cosine of two maps whose cells of cell x cell pixels are averaged first.

    Args:
        student, teacher: float (B, H, W). An image whose teacher's map is all zeros adds 0 to the sum over the batch.
        cell: side of a cell in pixels, at least 1. Cells at the lower and right edge may be smaller.

    Returns:
        scalar.
    """
    mine, theirs = (F.avg_pool2d(maps[:, None], cell, ceil_mode=True)[:, 0] for maps in (student, teacher))
    cosine = (normalise_map(mine) * normalise_map(theirs)).sum(dim=(1, 2))
    return torch.where(theirs.flatten(1).any(dim=1), 1 - cosine, 0.0).mean()


class MapMatching(Term):
    """Explanations as a target, after e2KD (Parchami-Araghi et al., ECCV 2024, arXiv 2402.03119), from the store's maps."""

    signals = ("ig",)
    differentiates = True

    def __init__(self, objective: Objective, optimisation: Optimisation) -> None:
        super().__init__(objective, optimisation)
        self.weight, self.every, self.cell = objective.map_weight, objective.map_every, objective.map_cell

    def forward(self, step: Step) -> Tensor:
        assert step.pixels is not None and step.origin is not None and step.teacher_map is not None
        return map_distance(input_gradient_map(step.logits, step.labels, step.pixels, step.origin), step.teacher_map, self.cell)
