"""The term `at`: attention transfer between corresponding layers of student and teacher."""

import torch
from torch import Tensor

from igkd.attribution.attention import attention_map, resize_map
from igkd.config.optimisation import Objective, Optimisation
from igkd.training.terms.term import Step, Term


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over batch and positions of the squared difference of two (B, h, w) attention maps: a scalar."""
    return torch.mean((teacher - student) ** 2)


class AttentionTransfer(Term):
    """gamma AT (Zagoruyko, Komodakis 2017, as in Hernandez, Chang, Nordling, arXiv 2503.13008)."""

    signals = ("attention",)

    def __init__(self, objective: Objective, optimisation: Optimisation) -> None:
        super().__init__(objective, optimisation)
        self.weight = objective.gamma
        if objective.gamma > 0:
            assert objective.tap is not None
            self.taps = (objective.tap,)

    def forward(self, step: Step) -> Tensor:
        assert step.teacher_attention is not None
        mine = attention_map(step.outputs[self.taps[0]].float())
        return attention_transfer(mine, resize_map(step.teacher_attention, (mine.shape[1], mine.shape[2])))
