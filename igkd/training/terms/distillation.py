"""The term `kd`: knowledge distillation from the teacher's logits."""

import torch.nn.functional as F
from torch import Tensor

from igkd.config.optimisation import Objective, Optimisation
from igkd.training.terms.term import Step, Term


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation (Hinton et al. 2015): T^2 / B * sum KL(softmax(t / T) || softmax(s / T)).

    Args:
        student, teacher: logits, float (B, classes).
        temperature: T > 0.

    Returns:
        scalar.
    """
    s = F.log_softmax(student / temperature, dim=1)
    t = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(s, t, reduction="batchmean", log_target=True)


class Distillation(Term):
    """alpha KD (Hernandez, Chang, Nordling, arXiv 2503.13008)."""

    signals = ("logits",)

    def __init__(self, objective: Objective, optimisation: Optimisation) -> None:
        super().__init__(objective, optimisation)
        self.weight, self.temperature = objective.alpha, objective.temperature

    def forward(self, step: Step) -> Tensor:
        assert step.teacher_logits is not None
        return distillation(step.logits, step.teacher_logits, self.temperature)
