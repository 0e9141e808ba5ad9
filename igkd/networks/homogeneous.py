"""The family `homogeneous`: lean and airbench networks without biases, whose integrated gradients take one pass.

`homogeneous:1:24x2,48x2,96x2` has the layers of `lean:1:24x2,48x2,96x2`, and `homogeneous:airbench:32,128,128` those of
`airbench:32,128,128`, without any bias and with a normalisation that does not shift. In its place the convolutions have filters of mean 0
(but for the first of an airbench network), so that what all inputs have in common does not reach the output. In evaluation every layer
then multiplies its output by a if its input is multiplied by a >= 0, and so does the network: F(a x) = a F(x). The gradient is therefore
the same along the whole path from 0 to x, and integrated gradients from 0 are exactly input times gradient (Hesse, Schaub-Meyer, Roth
2021, "Fast Axiomatic Attribution for Neural Networks", arXiv 2111.07668).

0 is here 0 in the network's normalised space, which is where igkd's maps start anyway, so pixels are normalised as for any other network.
From a baseline of another colour, the maps are integrated by nodes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igkd.networks import airbench, lean
from igkd.networks.pooled import Pooled

FAMILY = "homogeneous"
_AIRBENCH = "airbench:"


class ScaleNorm2d(nn.BatchNorm2d):
    """Batch normalisation that only divides: y = weight * x / sqrt(mean(x^2) + eps), with the mean over batch and positions.

    Batch normalisation also adds bias - weight * mean / deviation, which does not grow with x. In evaluation the mean of squares is a
    constant, its running mean over the batches of training (`running_var`), so y is proportional to x. `running_mean` stays 0, so in
    evaluation this is torch's own layer, with the same folding and export.
    """

    evaluates_as = nn.BatchNorm2d

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_parameter("bias", None)

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Sum of squares, at least float32 (C,), and number of values in each channel."""
        # Unlike the sum of x^2, a norm does not store the squares of all values.
        norms: Tensor = torch.linalg.vector_norm(x, dim=(0, 2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
        return norms.square(), x.numel() / x.shape[1]

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_var is not None and self.num_batches_tracked is not None
        squares, count = self.sums(input)
        mean = squares / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            # Without a momentum, torch averages over all batches so far.
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_var.lerp_(mean.to(self.running_var), momentum)
        scale = self.weight * (mean + self.eps).rsqrt()
        return input * scale.to(input.dtype).view(1, -1, 1, 1)


class CentredConv2d(nn.Conv2d):
    """A convolution without bias whose filters have mean 0: each is `weight` less its mean over (in, height, width).

    This is weight standardisation (Qiao et al. 2019, arXiv 1903.10520) without the division, which the normalisation after it does. After
    ReLU all inputs are positive on average, which batch normalisation subtracts from its input; here it never arises.
    """

    evaluates_as = nn.Conv2d

    def centred(self) -> Tensor:
        """The filters, of the shape of `weight`."""
        return self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)

    def settle(self) -> None:
        """Give `weight` the values of the filters, which changes no output."""
        with torch.no_grad():
            self.weight.copy_(self.centred())

    def forward(self, input: Tensor) -> Tensor:
        if self.kernel_size == (1, 1) and torch.is_grad_enabled():  # see `convolutions.Shortcut`
            down, right = self.stride
            return F.conv2d(input[:, :, ::down, ::right], self.centred())
        output: Tensor = self._conv_forward(input, self.centred(), None)
        return output


def _base(options: str) -> tuple[str, str]:
    """The family whose networks lose their biases, lean if none is named, and the options for it."""
    return ("airbench", options.removeprefix(_AIRBENCH)) if options.startswith(_AIRBENCH) else ("lean", options)


def canonical(options: str) -> str:
    """The options in their canonical spelling."""
    family, of_family = _base(options)
    if family == "airbench":
        return f"{_AIRBENCH}{airbench.parse(of_family, f'{FAMILY}:airbench')}"
    return str(lean.parse(of_family, FAMILY))


def build(options: str, classes: int) -> nn.Module:
    """The network, freshly initialised by torch's generator; it maps float (B, 3, H, W), normalised, to logits (B, classes)."""
    family, of_family = _base(canonical(options))
    if family == "airbench":
        features = airbench.features(airbench.parse(of_family), ScaleNorm2d)
        centred = features[1:]  # the first filters, of which one is the brightness itself, see pixels of both signs
    else:
        centred = features = lean.features(lean.parse(of_family), ScaleNorm2d)
    for module in centred.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = CentredConv2d
    return Pooled(features, classes, bias=False)


def tap(options: str, teacher: str) -> str | None:
    """Always None: no layer corresponds to one of a teacher."""
    return None


def student(options: str, teacher: str | None, side: int) -> str:
    """The options in their canonical spelling; they leave nothing open."""
    return canonical(options)
