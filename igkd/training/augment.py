"""Random crop, flip, overlay and cutout, as batched tensor operations that move image and map together.

`draw` makes the random choices, `augment` applies them.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igkd.attribution.gradcam import enlarged
from igkd.attribution.overlay import content_of, overlay, sharpen
from igkd.base.random_draws import shuffled, uniform
from igkd.config.optimisation import Objective, Optimisation
from igkd.images.samples import Samples
from igkd.images.views import View, are_resized, draw_resized_view, draw_view, few_crops, move
from igkd.store.signals import SIGNALS
from igkd.store.top_logits import TopLogits, unpacked


def logits_of_crops(views: Tensor, draws: "Draws", classes: Tensor | None = None) -> Tensor | TopLogits:
    """The teacher's stored logits of the crops that are drawn.

    Args:
        views: (B, 2p + 1, 2p + 1, 2, classes) with p at least the padding of the draws, or (B, K, classes); where only the k largest are
            stored, k + 3 numbers in place of as many as there are classes (`store.top_logits.largest`).
        classes: the classes of the largest logits, in the same shape with k; None if all are stored.

    Returns:
        float32 (B, classes), or the largest logits.
    """
    found = of_crops(views, draws)
    return found.float() if classes is None else unpacked(found, of_crops(classes, draws))


def of_crops(values: Tensor, draws: "Draws") -> Tensor:
    """Of what is stored of each crop, (B, 2p + 1, 2p + 1, 2, n) or (B, K, n), that of the crops that are drawn: (B, n)."""
    image = torch.arange(len(values), device=values.device)
    if values.dim() == 3:
        return values[image, draws.crop]
    padding, view = values.shape[1] // 2, draws.view
    return values[image, view.dy + padding, view.dx + padding, view.flip.long()]


def draw_overlay(
    seed: int, epoch: int, ids: NDArray[np.int64], probability: float, exponents: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Whether each image is overlaid, bool (B,), and its exponent, float (B,), log-uniform: functions of (seed, epoch, id)."""
    chosen = uniform(seed, f"epoch {epoch} overlay", ids) < probability
    low, high = np.log(exponents)
    exponent = np.exp(low + (high - low) * uniform(seed, f"epoch {epoch} exponent", ids))
    return torch.from_numpy(chosen), torch.from_numpy(exponent).float()


@dataclass(frozen=True)
class Draws:
    """All random choices for B images in one epoch; every tensor has shape (B,)."""

    view: View
    overlaid: Tensor
    """bool: whether the image is overlaid."""
    exponent: Tensor
    """float32: exponent of the overlay."""
    hidden_y: Tensor
    """int64: row of the centre of the cutout's square."""
    hidden_x: Tensor
    """int64: column of the centre of the cutout's square."""
    crop: Tensor
    """int64: which of an image's K stored crops is used; 0 if crops are not restricted to some."""

    def select(self, index: Tensor) -> "Draws":
        """The draws at the given positions."""
        return Draws(self.view.select(index), *(getattr(self, field.name)[index] for field in fields(self)[1:]))

    def to(self, device: torch.device) -> "Draws":
        """The draws with their tensors on a device."""
        return Draws(self.view.to(device), *(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)[1:]))


def draw(seed: int, epoch: int, ids: NDArray[np.int64], shape: tuple[int, int], optimisation: Optimisation, objective: Objective) -> Draws:
    """The random choices for each image in one epoch: a function of (seed, epoch, id) alone.

    Args:
        ids: int64 (B,).
        shape: (H, W) of the images.
    """
    probability = overlay_probability(objective, (epoch - 0.5) / optimisation.epochs)
    overlaid, exponent = draw_overlay(seed, epoch, ids, probability, objective.exponents)

    def place(purpose: str, places: int) -> Tensor:
        return torch.from_numpy((uniform(seed, f"epoch {epoch} {purpose}", ids) * places).astype(np.int64))

    crop = place("crop", 1 if objective.crops is None else objective.crops.count)
    if objective.crops is not None:
        view = few_crops(objective.crops, ids, optimisation.padding, shape).each(lambda values: values.gather(1, crop[:, None])[:, 0])
    elif are_resized(optimisation.crop, shape):
        view = draw_resized_view(seed, epoch, ids, shape)
    else:
        view = draw_view(seed, epoch, ids, optimisation.padding)
    return Draws(view, overlaid, exponent, place("hidden y", shape[0]), place("hidden x", shape[1]), crop)


def overlay_probability(objective: Objective, progress: float) -> float:
    """The probability of the overlay when a fraction `progress` of the run is done; its mean over the run is `objective.overlay`."""
    if objective.overlay_schedule == "constant":
        return objective.overlay
    return 2 * objective.overlay * (progress if objective.overlay_schedule == "rising" else 1 - progress)


def pixel_order(seed: int, epoch: int, ids: NDArray[np.int64], count: int) -> Tensor:
    """A random permutation of `count` pixels for each id, int64 (B, count): a function of (seed, epoch, id)."""
    return torch.from_numpy(np.argsort(uniform(seed, f"epoch {epoch} noise", ids[:, None] * count + np.arange(count)), axis=1))


def cutout(pixels: Tensor, centre_y: Tensor, centre_x: Tensor, side: int, grey: float = 0.5) -> Tensor:
    """Hide a square of each image behind a grey (DeVries, Taylor 2017, "Improved Regularization of CNNs with Cutout").

    Args:
        pixels: float (B, C, H, W).
        centre_y, centre_x: int64 (B,), anywhere in the image: part of a square may lie outside.
        side: side of the square in pixels.
    """
    height, width = pixels.shape[2:]
    rows = torch.arange(height, device=pixels.device) - centre_y[:, None]
    columns = torch.arange(width, device=pixels.device) - centre_x[:, None]
    inside = [(2 * offset >= -side) & (2 * offset < side) for offset in (rows, columns)]
    return torch.where(inside[0][:, None, :, None] & inside[1][:, None, None, :], grey, pixels)


def augment(
    samples: Samples, draws: Draws, optimisation: Optimisation, objective: Objective, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """The student's input for a batch, and the same crops without overlay and cutout, for a live teacher.

    Args:
        samples: B images; with signals `ig` (and `mask`) if the objective overlays them.
        draws: the random choices for these images.

    Returns:
        two float (B, 3, H, W) in [0, 1].
    """
    clean = move(samples.pixels, draws.view).float() / 255
    pixels = clean
    rows = draws.overlaid.nonzero().squeeze(1) if objective.overlay > 0 else draws.overlaid[:0]
    if len(rows):
        maps, *control = moved_maps(samples, draws, rows, objective, seed, epoch)
        layer = content_of(objective.content, sharpen(maps, draws.exponent[rows]), *control)
        pixels = clean.index_copy(0, rows, overlay(clean[rows], layer, objective.blend))
    if optimisation.cutout:
        pixels = cutout(pixels, draws.hidden_y, draws.hidden_x, optimisation.cutout)
    return pixels, clean


def moved_maps(
    samples: Samples, draws: Draws, rows: Tensor, objective: Objective, seed: int, epoch: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The maps of some of a batch's images, float (R, H, W), cropped and flipped like them; and, where the objective's content needs them,
    their masks, uint8 (R, H, W), and an order of their pixels, int64 (R, H * W).

    Args:
        rows: int64 (R,), positions of the images in the batch.
    """
    view, masks, order = draws.view.select(rows), None, None
    maps = samples.signals[objective.explanation][rows]
    maps = enlarged(maps, samples.shape) if objective.uncropped_maps else SIGNALS[objective.explanation].moved(maps, view, samples.shape)
    if objective.content == "mask":
        masks = SIGNALS["mask"].moved(samples.signals["mask"][rows], view, samples.shape)
    if objective.content == "noise":
        order = pixel_order(seed, epoch, samples.ids[rows.cpu().numpy()], maps[0].numel()).to(maps.device)
    return maps, masks, order


def map_targets(samples: Samples, draws: Draws, optimisation: Optimisation, objective: Objective, seed: int, epoch: int) -> Tensor:
    """What the student's own maps of a batch are compared with, float (B, H, W), not negative.

    It is 0 in the square of the cutout, which the student cannot see. It is 0 everywhere for an image that is overlaid: there the map is a
    part of the student's input, and resembling it shows nothing.
    """
    everything = torch.arange(len(samples), device=samples.pixels.device)
    maps, *control = moved_maps(samples, draws, everything, objective, seed, epoch)
    maps = content_of(objective.content, maps, *control)
    if optimisation.cutout:
        maps = cutout(maps[:, None], draws.hidden_y, draws.hidden_x, optimisation.cutout, 0.0)[:, 0]
    return maps if objective.overlay == 0 else maps.masked_fill(draws.overlaid[:, None, None], 0.0)


def deranged(count: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """For each of `count` images the position of another one, int64 (count,), by a random cycle, so that none is paired with itself.

    A single image is paired with itself.
    """
    order = shuffled(seed, purpose, np.arange(count))
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    return partner
