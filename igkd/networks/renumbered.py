"""Matches a network's classes with those of images or of another network, and reorders its logits."""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from igkd.images.class_names import renumbering
from igkd.networks.families import family_of
from igkd.networks.network import Classifier


class Reordered(nn.Module):
    """A network with its logits in another order."""

    order: Tensor

    def __init__(self, network: nn.Module, order: NDArray[np.int64]) -> None:
        """Args:
        order: int64 (classes,), the network's label of each class in the new order.
        """
        super().__init__()
        self.network = network
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.network(x)[:, self.order]


def class_numbers(model: Classifier, name: str, others: str, classes: tuple[str, ...], remedy: str) -> NDArray[np.int64]:
    """The network's label for each of `classes`, int64 (len(classes),).

    Args:
        name, others: for messages, the network and who has the other classes.
        classes: class names of images or of another network.
        remedy: for messages, what to do if the classes differ.

    Raises:
        UserError: the classes differ.
    """
    return renumbering(model.spec.classes, classes, name, others, remedy, imagenet=family_of(model.spec.name) == "torchvision")


def renumbered(model: Classifier, name: str, others: str, classes: tuple[str, ...], remedy: str) -> Classifier:
    """The network with its logits in the order of `classes`; the same object if they are in this order already.

    Arguments and errors are those of `class_numbers`.
    """
    order = class_numbers(model, name, others, classes, remedy)
    if np.array_equal(order, np.arange(len(order))):
        return model
    spec = dataclasses.replace(model.spec, classes=tuple(model.spec.classes[i] for i in order))
    return Classifier(spec, Reordered(model.network, order)).eval()
