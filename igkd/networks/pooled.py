"""The common structure of our own networks: feature layers, the mean over all positions, and one linear layer."""

from typing import Any

from torch import Tensor, nn


class Pooled(nn.Module):
    """A classifier that maps float (B, 3, H, W) to logits (B, classes)."""

    def __init__(self, features: nn.Sequential, classes: int, bias: bool = True) -> None:
        """Args:
        features: maps float (B, 3, H, W) to (B, C, h, w); its last batch normalisation has C channels.
        bias: whether the linear layer has one.
        """
        super().__init__()
        self.features = features
        channels = next(m.num_features for m in reversed(list(features.modules())) if isinstance(m, nn.BatchNorm2d))
        self.classifier = nn.Linear(channels, classes, bias=bias)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        if bias:
            nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Any:
        return self.classifier(self.features(x).mean(dim=(2, 3)))
