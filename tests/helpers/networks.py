"""Networks with weights that a trained one could have."""

import numpy as np
import torch
from torch import Tensor, nn

import jobs  # noqa: F401  # sets what Ray reads when it is imported, by whichever test is the first to do so
from igkd.images import drawn_shapes
from igkd.networks.network import Classifier


def lively(model: Classifier, seed: int = 0) -> Classifier:
    """Give batch normalisation and the last layer values that a trained network could have; a fresh one hides mistakes in them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            if module.bias is not None:  # else one that does not shift
                module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.2, 0.6, generator=generator)
            module.num_batches_tracked.fill_(7)
            with torch.no_grad():
                module.weight.uniform_(0.7, 1.3, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.2, generator=generator)
    with torch.no_grad():
        model.network.classifier.weight.normal_(0, 0.5, generator=generator)
        if model.network.classifier.bias is not None:
            model.network.classifier.bias.normal_(0, 0.5, generator=generator)
    return model.eval()


def settled(model: Classifier) -> Classifier:
    """Give batch normalisation the statistics of some shapes, so that signals neither fade nor grow with depth."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # running statistics are then plain means
    pixels = np.stack([drawn_shapes.draw(9, "train", i)[0] for i in range(16)]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        model.train()(torch.from_numpy(pixels).float() / 255)
    return model.eval()


def hooked_multiply_adds(model: Classifier) -> int:
    """Multiply-adds from the shapes that pass by each convolution and linear layer."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            total += output[0].numel() * (module.in_channels // module.groups) * height * width
        elif isinstance(module, nn.Linear):
            total += module.in_features * module.out_features

    handles = [module.register_forward_hook(count) for module in model.modules()]
    with torch.no_grad():
        model.eval()(torch.rand(1, 3, *model.spec.image_shape))
    for handle in handles:
        handle.remove()
    return total


def same_state(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(one[k].dtype == two[k].dtype and torch.equal(one[k], two[k]) for k in one)
