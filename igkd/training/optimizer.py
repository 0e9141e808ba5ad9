"""What a step changes: the optimizer with its learning rates, and which layers learn how."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from igkd.base.errors import UserError
from igkd.config.optimisation import Optimisation
from igkd.networks.network import Classifier, NetworkSpec
from igkd.networks.weights import head

Make = Callable[..., torch.optim.Optimizer]


def without_compiler(kind: type[torch.optim.Optimizer]) -> Make:
    """An optimizer of torch's that does not import torch's compiler, which takes each training process more than a second.

    torch (2.15) wraps these methods so that a compiler that meets them leaves them alone, and imports it to say so. Ours meets only the
    network.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad")}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


_SGD = without_compiler(torch.optim.SGD)
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda parameters, **how: _SGD(parameters, momentum=0.9, nesterov=True, **how),
    "adam": without_compiler(torch.optim.Adam),
    "adamw": without_compiler(torch.optim.AdamW),
}


def learning_rate(optimisation: Optimisation, progress: float) -> float:
    """Learning rate when a fraction `progress` of the run is done: constant, or one cycle (Smith, Topin 2018): a linear warm-up over the
    first fifth, then a cosine to 0."""
    if optimisation.schedule == "constant":
        return optimisation.learning_rate
    if progress < 0.2:
        return optimisation.learning_rate * max(progress / 0.2, 0.01)
    return optimisation.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))


def make_optimizer(model: nn.Module, optimisation: Optimisation, terms: nn.Module | None = None) -> torch.optim.Optimizer:
    """The optimizer for the parameters of a network and of the terms of its loss; the learning rate is set at every step.

    The network is a `Classifier`, possibly wrapped, if its last layer has a learning rate of its own.
    """
    groups: list[dict[str, Any]] = [{"params": [*model.parameters(), *([] if terms is None else terms.parameters())]}]
    if optimisation.head_factor != 1.0:
        network = unwrapped(model)
        assert isinstance(network, Classifier)
        names = head(network.spec.name)
        last = {id(parameter) for name, parameter in network.network.named_parameters() if name in names}
        every = groups[0]["params"]
        groups = [
            {"params": [one for one in every if id(one) not in last]},
            {"params": [one for one in every if id(one) in last], "factor": optimisation.head_factor},
        ]
    return OPTIMIZERS[optimisation.optimizer](groups, lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay)


def check_head_rate(spec: NetworkSpec, optimisation: Optimisation) -> None:
    """Raise UserError if the last layer is to have a learning rate of its own, and which layer is the last cannot be told."""
    if optimisation.head_factor != 1.0 and not head(spec.name):
        raise UserError(
            f"--head-learning-rate is for the last layer, and which one that is of {spec.name} cannot be told, since none has as many "
            "outputs as it is asked to have classes: leave it out"
        )


def set_training(model: nn.Module, optimisation: Optimisation) -> None:
    """Put a network into training mode; with `freeze_norms`, its batch normalisations keep their statistics."""
    model.train()
    if optimisation.freeze_norms:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def unwrapped(model: nn.Module) -> nn.Module:
    """The network without its wrapper for data parallelism, if it has one."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
