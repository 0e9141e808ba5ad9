"""Networks whose classes are in another order than the images'."""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igkd.images.class_names import renumbering
from igkd.networks.network import ImageClassifier
from igkd.networks.torchvision import TorchvisionClassifier


class Renumbered(ImageClassifier):
    """A classifier whose classes are in another order."""

    order: Tensor

    def __init__(self, model: ImageClassifier, order: NDArray[np.int64]) -> None:
        """Args:
        order: int64 (classes,), the model's number of each class in the new order.
        """
        super().__init__(dataclasses.replace(model.spec, classes=tuple(model.spec.classes[i] for i in order)))
        self.model = model
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        return self.model.normalise(pixels)

    def from_normalised(self, x: Tensor) -> Tensor:
        """Normalised float (B, 3, H, W) to logits (B, classes)."""
        return self.model.from_normalised(x)[:, self.order]


def class_numbers(model: ImageClassifier, name: str, others: str, classes: tuple[str, ...], remedy: str) -> NDArray[np.int64]:
    """A network's number of each class of images or of another network, int64 (len(classes),).

    Args:
        name, others: the network and the others in messages.
        classes: of the others.
        remedy: what to do where they are not the same.

    Raises:
        UserError: they are not the same.
    """
    return renumbering(model.spec.classes, classes, name, others, remedy, imagenet=isinstance(model, TorchvisionClassifier))


def renumbered(model: ImageClassifier, name: str, others: str, classes: tuple[str, ...], remedy: str) -> ImageClassifier:
    """The network with its logits in the order of another's classes; itself if they are.

    Args and errors are those of `class_numbers`.
    """
    order = class_numbers(model, name, others, classes, remedy)
    return model if np.array_equal(order, np.arange(len(order))) else Renumbered(model, order).eval()
