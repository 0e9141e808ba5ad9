"""Draws random lean architectures for jobs.search."""

import numpy as np

from igkd.base.errors import UserError
from igkd.networks.lean import MAX_STAGES, MAX_WIDTH, Lean

LEAST_SHARE = 0.5
"""Candidates have at least this share of the allowed parameters; smaller networks are not wanted."""
STEP = 8
"""Candidates' widths are multiples of this, which suits a CPU's vector instructions."""
LAST_MAP = (2, 8)
"""Smallest and largest side of the last stage's feature maps, in pixels."""
TRIES = 5000
"""Number of draws after which it is concluded that there are no more candidates; it does not depend on how many are wanted."""


def candidates(limit: int, count: int, seed: int, classes: int, image_shape: tuple[int, int]) -> list[Lean]:
    """Distinct random architectures with 50 to 100 % of the allowed parameters, narrow early and wide late.

    With a larger `count`, the list begins with the same architectures.

    Args:
        limit: largest number of parameters of the whole classifier.
        count: number of architectures.
        classes: number of classes.
        image_shape: (height, width) in pixels; the last stage's feature maps have 2 to 8 pixels a side.

    Raises:
        UserError: there are fewer than `count`.
    """
    rng, found = np.random.default_rng(seed), dict[Lean, None]()
    side = min(image_shape)
    depths = [
        (stem, stages)
        for stem in (2, 4)
        for stages in range(2, MAX_STAGES + 1)
        if LAST_MAP[0] <= side // (stem * 2 ** (stages - 1)) <= LAST_MAP[1]
    ] or [(1, 2)]  # for tiny images
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
    """The widest network with these proportions within a limit of parameters; None if there is none."""
    best = None
    for first in range(STEP, MAX_WIDTH + 1, STEP):
        widths = [STEP * round(first * factor / STEP) for factor in growth]
        one = Lean(stem, tuple(zip(widths, blocks, strict=True)))
        if widths[-1] > MAX_WIDTH or one.parameters(classes) > limit:
            break
        best = one
    return best
