"""Which of the teacher's layers a store's attention and Grad-CAM are of."""

import torch

from igkd.base.errors import UserError
from igkd.config.precompute import PrecomputeConfig
from igkd.networks.families import student_name
from igkd.networks.network import Classifier, NetworkSpec
from igkd.networks.renumbered import Reordered
from igkd.networks.taps import check_tap, deepest, layers, teacher_tap
from igkd.networks.trial import check_trainable


def kept_attention(config: PrecomputeConfig, model: Classifier, shape: tuple[int, int]) -> tuple[str | None, tuple[int, int]]:
    """The teacher's layer whose attention a store keeps for --student, and that map's (h, w); None and (0, 0) where none corresponds.

    Raises:
        UserError: --student names no network, or one that cannot take such pictures; or --taps names no layer of the teacher.
    """
    teacher = model.spec
    student = student_name(config.student, teacher.name, teacher.image_shape)
    check_trainable(NetworkSpec(name=student, classes=teacher.classes, image_shape=shape))
    network = layered(model)
    if config.taps is not None:
        layer: str | None = check_tap(config.taps[1], layers(network, shape), teacher.name)
    else:
        layer = teacher_tap(student, teacher.name, network, len(teacher.classes), shape)
    if layer is None:
        return None, (0, 0)
    with torch.inference_mode():
        features = model(torch.zeros(1, 3, *shape), (layer,))[1][layer]
    return layer, (features.shape[2], features.shape[3])


def kept_gradcam(config: PrecomputeConfig, model: Classifier, shape: tuple[int, int]) -> tuple[str | None, tuple[int, int]]:
    """The teacher's layer whose Grad-CAM a store keeps, its last one with feature maps, and their (h, w); None and (0, 0) if none is asked
    for.

    Raises:
        UserError: the teacher has no layer with feature maps.
    """
    if not config.gradcam:
        return None, (0, 0)
    found = layers(layered(model), shape)
    if not found:
        raise UserError(
            f"{model.spec.name} has no layer with feature maps of more than one pixel, which Grad-CAM needs: leave --gradcam out"
        )
    size = list(found.values())[-1]
    return deepest(found, size), size


def layered(model: Classifier) -> torch.nn.Module:
    """The module in which a network's layers have the paths that taps name."""
    return model.network.network if isinstance(model.network, Reordered) else model.network
