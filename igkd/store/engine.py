"""How a store's maps are computed: decided once, before the first part, and kept in the plan that all workers follow."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igkd import attribution
from igkd.base.choices import Engine, Split
from igkd.config.precompute import PrecomputeConfig
from igkd.images.codec import Scaling
from igkd.images.samples import decode_all
from igkd.images.source import ImageSource
from igkd.networks.families import architecture
from igkd.networks.network import Classifier

Begun = tuple[Engine, str]
"""Engine and quadrature that a store's existing parts were computed with."""
TRIED = 8
"""Number of images on which a teacher is tried for being homogeneous."""


def some_images(
    source: ImageSource, split: Split, ids: NDArray[np.int64], shape: tuple[int, int], resize: bool, scaling: Scaling
) -> Tensor:
    """At most TRIED of the images, evenly spread, as the teacher gets them: uint8 (n, 3, H, W); those that cannot be used are left out."""
    records = source.read(split, ids[:: -(-len(ids) // TRIED)].tolist())
    found = [pixels for _, pixels in decode_all(records, shape, resize, "skip", lambda record, why: None, scaling=scaling)]
    return torch.from_numpy(np.stack(found) if found else np.zeros((0, *shape, 3), np.uint8)).permute(0, 3, 1, 2)


def how_maps_are_computed(
    config: PrecomputeConfig, model: Classifier, pixels: Tensor, gpu: bool, begun: Begun | None, say: Callable[[str], None]
) -> Begun:
    """Engine and quadrature to compute a store with; those of the existing parts, if the settings allow them.

    Args:
        pixels: from `some_images`.
        gpu, begun, say: as in `compute.make_plan`.

    Raises:
        UserError: the engine fails with this teacher.
    """
    if begun is not None and (config.engine == begun[0] or (config.engine == "fast" and begun[0] in attribution.FAST_ENGINES)):
        # They have worked for this store, and need no trial.
        engine = attribution.choose_engine(begun[0], config.method, gpu)
        return engine, attribution.quadrature(engine, config.method, begun[1] == attribution.ONE_PASS)
    one_pass = len(pixels) > 0 and attribution.takes_one_pass(config.engine, config.method, model, pixels)
    shape = (pixels.shape[2], pixels.shape[3])
    engine, why = attribution.find_engine(config.engine, config.method, gpu, model, shape, one_pass)
    if why:
        say(f"fast stands for the engine {engine} here: {why}")
    if one_pass:
        say(f"the teacher is homogeneous, F(a x) = a F(x), on {len(pixels)} images: one pass gives each map exactly, --steps is not used")
    elif architecture(model.spec.name)[0] == "homogeneous" and config.method == "ig":
        say(f"the teacher is not homogeneous, or not by this engine: each map takes {config.steps} steps")
    return engine, attribution.quadrature(engine, config.method, one_pass)
