"""The term `ce`: cross-entropy with the labels."""

import torch.nn.functional as F
from torch import Tensor

from igkd.config.optimisation import Objective, Optimisation
from igkd.training.terms.term import Step, Term


class CrossEntropy(Term):
    """(1 - alpha) CE, with label smoothing (Szegedy et al. 2016) if it is asked for."""

    def __init__(self, objective: Objective, optimisation: Optimisation) -> None:
        super().__init__(objective, optimisation)
        self.weight, self.smoothing = 1 - objective.alpha, optimisation.label_smoothing

    def forward(self, step: Step) -> Tensor:
        return F.cross_entropy(step.logits, step.labels, label_smoothing=self.smoothing)
