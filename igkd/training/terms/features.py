"""The term `feat`: feature distillation through a learned projection."""

import torch.nn.functional as F
from torch import Tensor, nn

from igkd.config.optimisation import Objective, Optimisation
from igkd.training.terms.term import Step, Term


class FeatureDistillation(Term):
    """Hints (Romero et al., ICLR 2015, "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550): the mean squared difference of a layer's
    features of the teacher and of the student's, which a 1x1 convolution, trained with the student, maps to as many channels.

    Features of another size are interpolated to the student's.
    """

    signals = ("features",)

    def __init__(self, objective: Objective, optimisation: Optimisation) -> None:
        super().__init__(objective, optimisation)
        self.weight = objective.feature_weight
        if self.weight > 0:
            assert objective.tap is not None and objective.tap_channels is not None
            self.taps = (objective.tap,)
            self.projection = nn.Conv2d(*objective.tap_channels, kernel_size=1)

    def forward(self, step: Step) -> Tensor:
        assert step.teacher_features is not None
        mine = self.projection(step.outputs[self.taps[0]].float())
        theirs = step.teacher_features
        if theirs.shape[2:] != mine.shape[2:]:
            theirs = F.interpolate(theirs, size=mine.shape[2:], mode="bilinear", align_corners=False, antialias=True)
        return F.mse_loss(mine, theirs)
