"""The terms of the loss. A run's loss is the sum of those that its objective gives a weight.

A new term is one module with a `Term`, one line in `TERMS`, and its weight in `config.optimisation.Objective`.
"""

from torch import nn

from igkd.config.optimisation import Objective, Recipe
from igkd.training.terms.attention import AttentionTransfer
from igkd.training.terms.cross_entropy import CrossEntropy
from igkd.training.terms.distillation import Distillation
from igkd.training.terms.term import Step, Term

TERMS: dict[str, type[Term]] = {"ce": CrossEntropy, "kd": Distillation, "at": AttentionTransfer}
"""By the name that stands for it in an arm: "ce" is in every arm. The sum is made in this order."""

__all__ = ["TERMS", "Step", "Term", "terms_of"]


def terms_of(objective: Objective, recipe: Recipe) -> nn.ModuleList:
    """The terms that have a weight, each a `Term`, in the order of the registry."""
    made = (term(objective, recipe) for term in TERMS.values())
    return nn.ModuleList([term for term in made if term.weight > 0])
