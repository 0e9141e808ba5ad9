"""The term `kd`: knowledge distillation from the teacher's logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from igkd.config.optimisation import Objective, Optimisation
from igkd.store.top_logits import TopLogits
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


def distillation_of_top(student: Tensor, teacher: TopLogits, temperature: float) -> Tensor:
    """Knowledge distillation over k + 1 outcomes: the teacher's k most probable classes, and "any other class".

    T^2 / B * sum KL(t || s), where the last entry of t and s is the sum of the softmax at T over all other classes. It is never above the
    loss over all classes, and says nothing of how the student divides the last entry among the others.

    Args:
        student: logits, float (B, classes).
        temperature: T >= 1.

    Returns:
        scalar.
    """
    s = F.log_softmax(student / temperature, dim=1)
    others = s.scatter(1, teacher.classes, -math.inf).logsumexp(dim=1, keepdim=True)
    s = torch.cat([s.gather(1, teacher.classes), others], dim=1)
    t = F.log_softmax(teacher.at(temperature, student.shape[1]), dim=1)
    return temperature**2 * F.kl_div(s, t, reduction="batchmean", log_target=True)


class Distillation(Term):
    """alpha KD (Hernandez, Chang, Nordling, arXiv 2503.13008)."""

    signals = ("logits",)

    def __init__(self, objective: Objective, optimisation: Optimisation) -> None:
        super().__init__(objective, optimisation)
        self.weight, self.temperature = objective.alpha, objective.temperature

    def forward(self, step: Step) -> Tensor:
        assert step.teacher_logits is not None
        if isinstance(step.teacher_logits, TopLogits):
            return distillation_of_top(step.logits, step.teacher_logits, self.temperature)
        return distillation(step.logits, step.teacher_logits, self.temperature)
