"""The terms of the loss. A run's loss is the weighted sum of those whose weight in its objective is not 0.

To add a term, write one module with a `Term`, add one entry to `TERMS`, and its weight to `config.optimisation.Objective`.
"""

from torch import nn

from igkd.config.optimisation import Objective, Optimisation
from igkd.training.terms.attention import AttentionTransfer
from igkd.training.terms.cross_entropy import CrossEntropy
from igkd.training.terms.decoupled import DecoupledDistillation
from igkd.training.terms.distillation import Distillation
from igkd.training.terms.features import FeatureDistillation
from igkd.training.terms.input_gradients import MapMatching
from igkd.training.terms.standardised import StandardisedDistillation
from igkd.training.terms.term import Step, Term

TERMS: dict[str, type[Term]] = {
    "ce": CrossEntropy,
    "kd": Distillation,
    "at": AttentionTransfer,
    "map": MapMatching,
    "dkd": DecoupledDistillation,
    "lskd": StandardisedDistillation,
    "feat": FeatureDistillation,
}
"""The terms by their names in an arm; "ce" is in every arm. They are summed in this order."""

__all__ = ["TERMS", "Step", "Term", "terms_of"]


def terms_of(objective: Objective, optimisation: Optimisation) -> nn.ModuleList:
    """The terms whose weight is not 0, each a `Term`, in the order of the registry."""
    made = (term(objective, optimisation) for term in TERMS.values())
    return nn.ModuleList([term for term in made if term.weight > 0])
