"""Matches a network's classes with those of images or of another network, and reorders its logits or keeps only some of them."""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.images.class_names import among, renumbering
from igkd.networks.class_map import mapped
from igkd.networks.families import IMAGENET, architecture
from igkd.networks.network import Classifier


class Reordered(nn.Module):
    """A network with its logits in another order, or only some of them. Its layers have the paths that they have in the network."""

    order: Tensor

    def __init__(self, network: nn.Module, order: NDArray[np.int64]) -> None:
        """Args:
        order: int64 (classes,), the network's label of each class that is kept, in the new order.
        """
        super().__init__()
        self.network = network
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.network(x)[:, self.order]

    def get_submodule(self, target: str) -> nn.Module:
        return self.network.get_submodule(target)


def class_numbers(model: Classifier, name: str, others: str, classes: tuple[str, ...], remedy: str) -> NDArray[np.int64]:
    """The network's label for each of `classes`, int64 (len(classes),).

    Args:
        name, others: for messages, the network and who has the other classes.
        classes: class names of images or of another network.
        remedy: for messages, what to do if the classes differ.

    Raises:
        UserError: the classes differ.
    """
    return renumbering(model.spec.classes, classes, name, others, remedy, imagenet=architecture(model.spec.name)[0] in IMAGENET)


def renumbered(model: Classifier, name: str, others: str, classes: tuple[str, ...], remedy: str) -> Classifier:
    """The network with its logits in the order of `classes`; the same object if they are in this order already.

    Arguments and errors are those of `class_numbers`.
    """
    order = class_numbers(model, name, others, classes, remedy)
    if np.array_equal(order, np.arange(len(order))):
        return model
    spec = dataclasses.replace(model.spec, classes=tuple(model.spec.classes[i] for i in order))
    return Classifier(spec, Reordered(model.network, order)).eval()


def restricted(model: Classifier, name: str, others: str, classes: tuple[str, ...], remedy: str) -> tuple[Classifier, str | None]:
    """The network with the logits of `classes` alone, if these are fewer than it knows; the same object if they are as many.

    Logits of the classes that are left out are dropped, so that a softmax divides all probability among those that are kept.

    Arguments and errors are those of `class_numbers`.

    Returns:
        the network, whose classes have the names in `classes` if some were left out; and a line that says so, or None.
    """
    known = model.spec.classes
    if len(classes) >= len(known):
        return model, None
    numbers = among(known, classes, name)
    if numbers is None:
        class_numbers(model, name, others, classes, f"name them as it does, or give --class-map FILE, or {remedy}")
        raise UserError(f"{name} does not know the classes of {others}: give --class-map FILE, or {remedy}")
    return chosen(model, numbers, classes), said(name, known, numbers, classes)


def chosen(model: Classifier, numbers: NDArray[np.int64], classes: tuple[str, ...]) -> Classifier:
    """The network with the logits `numbers`, int64 (len(classes),), alone, which get the names `classes`."""
    return Classifier(dataclasses.replace(model.spec, classes=classes), Reordered(model.network, numbers)).eval()


def said(name: str, known: tuple[str, ...], numbers: NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """The line that says which of its classes a network keeps."""
    pairs = [one if one == known[i] else f"{one} ({known[i]})" for one, i in zip(classes, numbers.tolist(), strict=True)]
    listed = ", ".join(pairs[:6]) + (", ..." if len(pairs) > 6 else "")
    return (
        f"{name} knows {len(known)} classes, of which {len(classes)} are used: {listed}; students have these, and learn from its logits of "
        "these alone"
    )


def for_pictures(
    model: Classifier, name: str, others: str, classes: tuple[str, ...], remedy: str, class_map: str | None = None
) -> tuple[Classifier, str | None]:
    """The network with the logits of the pictures' classes: found by the file of --class-map, or else as by `restricted`.

    Arguments, errors and result are those of `restricted`.
    """
    if class_map is None:
        return restricted(model, name, others, classes, remedy)
    numbers = mapped(class_map, model.spec.classes, classes, name, others)
    return chosen(model, numbers, classes), said(name, model.spec.classes, numbers, classes)
