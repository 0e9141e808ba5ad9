"""The family `lean`: plain residual networks that are fast on a CPU.

A cut MobileNet-V2 keeps its teacher's early layers, which work at full resolution and take most of the time. A lean network reduces the
resolution at once, is narrow early and wide late, and has plain convolutions instead of depthwise ones, which move much memory for
little arithmetic. `lean:2:32x1,64x1,96x2` has a first convolution of stride 2 and three stages of WIDTHxBLOCKS; each stage after the
first halves the resolution.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.networks.layers import Shortcut
from igkd.networks.pooled import Pooled

MAX_WIDTH, MAX_BLOCKS, MAX_STAGES = 1024, 16, 6
STEMS = (1, 2, 4)
_STAGE = "[1-9][0-9]{0,3}x[1-9][0-9]?"
_NAME = re.compile(f"[{''.join(map(str, STEMS))}]:{_STAGE}(?:,{_STAGE}){{0,{MAX_STAGES - 1}}}")


@dataclass(frozen=True)
class Lean:
    """The architecture of a lean network."""

    stem: int
    """Stride of the first convolution: 1, 2 or 4."""
    stages: tuple[tuple[int, int], ...]
    """(width, blocks) of 1 to MAX_STAGES stages; widths are 1 to MAX_WIDTH channels, blocks 1 to MAX_BLOCKS."""

    def __str__(self) -> str:
        return f"{self.stem}:{','.join(f'{width}x{blocks}' for width, blocks in self.stages)}"

    @property
    def kernel(self) -> int:
        """Side of the stem's kernel in pixels: large enough that no pixel is skipped, neither between its steps nor at the edge."""
        return max(3, 2 * self.stem - 1)

    @property
    def last_width(self) -> int:
        """Channels of the last stage."""
        return self.stages[-1][0]

    def parameters(self, classes: int) -> int:
        """Number of trainable scalars of the whole classifier, computed without building it."""
        before = self.stages[0][0]
        total = 3 * self.kernel**2 * before + 2 * before
        for stage, (width, blocks) in enumerate(self.stages):
            for block in range(blocks):
                total += 9 * before * width + 9 * width * width + 4 * width
                if block == 0 and (stage > 0 or before != width):
                    total += before * width + 2 * width
                before = width
        return total + before * classes + classes


class Block(nn.Module):
    """The residual block of He et al. 2015 (arXiv 1512.03385), with the layers and names of torchvision's `BasicBlock`.

    It is not torchvision's because importing that takes each training process more than a second.
    """

    def __init__(self, before: int, width: int, stride: int, downsample: nn.Module | None, norm: type[nn.BatchNorm2d]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, before, H, W) to (B, width, H / stride, W / stride)."""
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        out = self.relu(out)
        return out


def parse(text: str, family: str = "lean") -> Lean:
    """The architecture for a name's options; `str` is the inverse.

    Args:
        family: for the message, the family whose name it is.

    Raises:
        UserError: the options are malformed or out of range.
    """
    if _NAME.fullmatch(text) is not None:  # the pattern bounds the text's length and every number in it
        stem, _, rest = text.partition(":")
        stages = tuple((int(width), int(blocks)) for width, blocks in (stage.split("x") for stage in rest.split(",")))
        if all(width <= MAX_WIDTH and blocks <= MAX_BLOCKS for width, blocks in stages):
            return Lean(int(stem), stages)
    raise UserError(
        f"{short(f'{family}:{text}')} names no network; one is {family}:2:32x1,64x1,96x2 (stride of the stem, 1, 2 or 4; WIDTHxBLOCKS of "
        f"at most {MAX_STAGES} stages, at most {MAX_WIDTH} wide, of at most {MAX_BLOCKS} blocks)"
    )


def features(lean: Lean, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> nn.Sequential:
    """The layers before the classifier, freshly initialised: they map float (B, 3, H, W) to (B, last_width, h, w).

    Args:
        norm: the normalisation after each convolution; takes the number of channels.
    """
    width = lean.stages[0][0]
    first = nn.Conv2d(3, width, lean.kernel, lean.stem, lean.kernel // 2, bias=False)
    stem = nn.Sequential(first, norm(width), nn.ReLU(inplace=True))
    layers: list[nn.Module] = [stem, *_blocks(lean, width, norm)]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # the initialisation of torchvision's residual networks
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _blocks(lean: Lean, before: int, norm: type[nn.BatchNorm2d]) -> Iterator[nn.Module]:
    for stage, (width, blocks) in enumerate(lean.stages):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            beside = None
            if stride != 1 or before != width:
                beside = nn.Sequential(Shortcut(before, width, 1, stride, bias=False), norm(width))
            yield Block(before, width, stride, beside, norm)
            before = width


def canonical(options: str) -> str:
    """The options in their canonical spelling."""
    return str(parse(options))


def build(options: str, classes: int) -> nn.Module:
    """The network, freshly initialised by torch's generator; it maps float (B, 3, H, W), normalised, to logits (B, classes)."""
    return Pooled(features(parse(options)), classes)


def tap(options: str, teacher: str) -> str | None:
    """Always None: no layer corresponds to one of a teacher."""
    return None


def student(options: str, teacher: str | None, side: int) -> str:
    """The options in their canonical spelling; they leave nothing open."""
    return canonical(options)
