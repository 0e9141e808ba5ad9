"""The term `lskd`: knowledge distillation from standardised logits."""

import torch
from torch import Tensor

from igkd.config.optimisation import Objective, Optimisation
from igkd.training.terms.distillation import distillation
from igkd.training.terms.term import Step, Term

TINY = 1e-7
"""Added to the standard deviation, as by the authors."""
LEAST = 0.01
"""Least standard deviation. A student whose last layer begins with zeros has equal logits, and its first gradient would be 1 / TINY."""


def standardised(logits: Tensor) -> Tensor:
    """Logits (B, classes), each image's of mean 0 and standard deviation 1 over the classes; equal ones become 0."""
    std, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (std + TINY).clamp(min=LEAST)


class StandardisedDistillation(Term):
    """lskd times distillation of logits standardised for each image (Sun et al., CVPR 2024, "Logit Standardization in Knowledge
    Distillation", arXiv 2403.01427): the student learns how logits are related, not how large they are."""

    signals = ("logits",)

    def __init__(self, objective: Objective, optimisation: Optimisation) -> None:
        super().__init__(objective, optimisation)
        self.weight, self.temperature = objective.lskd, objective.temperature

    def forward(self, step: Step) -> Tensor:
        assert isinstance(step.teacher_logits, Tensor)
        return distillation(standardised(step.logits), standardised(step.teacher_logits), self.temperature)
