"""Lean students: plain residual networks that a processor runs fast, beside the cut MobileNet-V2.

A cut student keeps its teacher's early layers, which see the image at full resolution and are most of the time. A lean one takes its
first steps down at once, is narrow early and wide late, and has plain convolutions instead of depthwise ones, which move much
memory for little arithmetic. One string names an architecture everywhere: `2:32x1,64x1,96x2` is a stem of stride 2 and three stages of
WIDTHxBLOCKS, each after the first at half the resolution of the one before it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn
from torchvision.models.resnet import BasicBlock

from igkd.convolutions import Shortcut
from igkd.errors import UserError
from igkd.typed import short

MAX_WIDTH, MAX_BLOCKS, MAX_STAGES = 1024, 16, 6
STEMS = (1, 2, 4)
_STAGE = "[1-9][0-9]{0,3}x[1-9][0-9]?"
_NAME = re.compile(f"[{''.join(map(str, STEMS))}]:{_STAGE}(?:,{_STAGE}){{0,{MAX_STAGES - 1}}}")
LEAST_SHARE = 0.5
"""Of the limit that a candidate's parameters may not fall below: a smaller network is not what is asked for."""
STEP = 8
"""Candidates' widths are multiples of it: what a processor computes side by side."""
LAST_MAP = (2, 8)
"""Pixels a side of a candidate's last stage: the least and the most."""
TRIES = 5000
"""Drawn, however many candidates are asked for, before it is said that there are no more."""


@dataclass(frozen=True)
class Lean:
    """An architecture."""

    stem: int
    """Stride of the first convolution: 1, 2 or 4."""
    stages: tuple[tuple[int, int], ...]
    """(width, blocks) of each, 1 to MAX_STAGES of them; widths are 1 to MAX_WIDTH channels, blocks 1 to MAX_BLOCKS."""

    def __str__(self) -> str:
        return f"{self.stem}:{','.join(f'{width}x{blocks}' for width, blocks in self.stages)}"

    @property
    def kernel(self) -> int:
        """Side of the stem's kernel: so wide that there are no pixels, between its steps or at the edge, which the network never sees."""
        return max(3, 2 * self.stem - 1)

    @property
    def last_width(self) -> int:
        """Channels of what it gives."""
        return self.stages[-1][0]

    def parameters(self, classes: int) -> int:
        """Trainable scalars of the whole classifier, without building it."""
        before = self.stages[0][0]
        total = 3 * self.kernel**2 * before + 2 * before
        for stage, (width, blocks) in enumerate(self.stages):
            for block in range(blocks):
                total += 9 * before * width + 9 * width * width + 4 * width
                if block == 0 and (stage > 0 or before != width):
                    total += before * width + 2 * width
                before = width
        return total + before * classes + classes


def parse(text: str) -> Lean:
    """The architecture that a string names; `str` of it is the same string again.

    Raises:
        UserError: it names none, or one beyond all bounds.
    """
    if _NAME.fullmatch(text) is not None:  # whose length is bounded, and so is every number in it
        stem, _, rest = text.partition(":")
        stages = tuple((int(width), int(blocks)) for width, blocks in (stage.split("x") for stage in rest.split(",")))
        if all(width <= MAX_WIDTH and blocks <= MAX_BLOCKS for width, blocks in stages):
            return Lean(int(stem), stages)
    raise UserError(
        f"{short(text)} names no lean student; one is 2:32x1,64x1,96x2 (stride of the stem, 1, 2 or 4; then WIDTHxBLOCKS of at most "
        f"{MAX_STAGES} stages, at most {MAX_WIDTH} wide, of at most {MAX_BLOCKS} blocks)"
    )


def features(lean: Lean) -> nn.Sequential:
    """The network before the classifier: float (B, 3, H, W) to (B, last_width, h, w), freshly initialised by torch's generator."""
    width = lean.stages[0][0]
    first = nn.Conv2d(3, width, lean.kernel, lean.stem, lean.kernel // 2, bias=False)
    stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    layers: list[nn.Module] = [stem, *_blocks(lean, width)]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # as torchvision's residual networks are
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _blocks(lean: Lean, before: int) -> Iterator[nn.Module]:
    for stage, (width, blocks) in enumerate(lean.stages):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            beside = None
            if stride != 1 or before != width:
                beside = nn.Sequential(Shortcut(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            yield BasicBlock(before, width, stride, beside)
            before = width


def candidates(limit: int, count: int, seed: int, classes: int, image_shape: tuple[int, int]) -> list[Lean]:
    """Distinct random architectures that use 50 to 100 % of a limit of parameters, narrow early and wide late.

    More of them begin with the same ones.

    Args:
        limit: parameters of the whole classifier, at most.
        count: how many.
        classes: that the classifier tells apart.
        image_shape: (height, width) in pixels; the last stage sees it at 2 to 8 pixels a side.

    Raises:
        UserError: there are not so many.
    """
    rng, found = np.random.default_rng(seed), dict[Lean, None]()
    side = min(image_shape)
    depths = [
        (stem, stages)
        for stem in (2, 4)
        for stages in range(2, MAX_STAGES + 1)
        if LAST_MAP[0] <= side // (stem * 2 ** (stages - 1)) <= LAST_MAP[1]
    ] or [(1, 2)]  # of tiny images
    for _ in range(TRIES):
        if len(found) == count:
            break
        stem, stages = depths[rng.integers(len(depths))]
        growth = np.cumprod([1.0, *rng.choice((1.25, 1.5, 2.0, 2.5, 3.0), stages - 1)])
        blocks = [int(n) for n in rng.integers(1, 4, stages)]
        target = rng.uniform(LEAST_SHARE, 1) * limit
        widest = _widest(stem, growth.tolist(), blocks, target, classes)
        if widest is not None and widest.parameters(classes) >= LEAST_SHARE * limit:
            found.setdefault(widest)
    if len(found) < count:
        raise UserError(f"there are only {len(found)} lean students of {LEAST_SHARE * limit:,.0f} to {limit:,} parameters, not {count}")
    return list(found)


def _widest(stem: int, growth: list[float], blocks: list[int], limit: float, classes: int) -> Lean | None:
    """The widest network of these proportions within a limit of parameters."""
    best = None
    for first in range(STEP, MAX_WIDTH + 1, STEP):
        widths = [STEP * round(first * factor / STEP) for factor in growth]
        one = Lean(stem, tuple(zip(widths, blocks, strict=True)))
        if widths[-1] > MAX_WIDTH or one.parameters(classes) > limit:
            break
        best = one
    return best
