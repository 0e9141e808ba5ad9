"""The term `dkd`: decoupled knowledge distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from igkd.config.optimisation import Objective, Optimisation
from igkd.training.terms.term import Step, Term


def decoupled_distillation(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, beta: float) -> Tensor:
    """Decoupled knowledge distillation (Zhao et al., CVPR 2022, eq. 7, with alpha 1): T^2 / B * sum (TCKD + beta NCKD).

    TCKD is the KL divergence of two outcomes, the label's class or any other; NCKD that of the other classes among themselves. Distillation
    (`distillation.py`) is TCKD + (1 - p) NCKD, with p the teacher's probability of the label.

    Args:
        student, teacher: logits, float (B, classes), of at least two classes.
        labels: int64 (B,).
        temperature: T > 0.
        beta: weight of NCKD.

    Returns:
        scalar.
    """
    is_label = F.one_hot(labels, student.shape[1]).bool()

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the probabilities of label and rest (B, 2), and of the other classes among themselves (B, classes - 1)."""
        scaled = logits / temperature
        others = scaled[~is_label].view(len(logits), -1)
        two = torch.stack([scaled[is_label], others.logsumexp(dim=1)], dim=1)
        return F.log_softmax(two, dim=1), F.log_softmax(others, dim=1)

    (s_two, s_others), (t_two, t_others) = parts(student), parts(teacher)
    target = F.kl_div(s_two, t_two, reduction="batchmean", log_target=True)
    return temperature**2 * (target + beta * F.kl_div(s_others, t_others, reduction="batchmean", log_target=True))


class DecoupledDistillation(Term):
    """dkd (TCKD + beta NCKD), from the teacher's logits of all classes."""

    signals = ("logits",)

    def __init__(self, objective: Objective, optimisation: Optimisation) -> None:
        super().__init__(objective, optimisation)
        self.weight, self.beta, self.temperature = objective.dkd, objective.beta, objective.temperature

    def forward(self, step: Step) -> Tensor:
        assert isinstance(step.teacher_logits, Tensor)
        return decoupled_distillation(step.logits, step.teacher_logits, step.labels, self.temperature, self.beta)
