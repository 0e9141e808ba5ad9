"""Answers and maps of networks for a few images, and how similar the maps are."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igkd.attribution import Colour, attributor
from igkd.base.choices import BadImages, Split
from igkd.base.errors import UserError, printable
from igkd.evaluation.evaluate import predict
from igkd.evaluation.map_metrics import check_finite, cosine, rank_correlation
from igkd.images.codec import size
from igkd.images.folder import FolderImages
from igkd.images.samples import Samples, decode_all, sentences
from igkd.images.source import ImageSource, Record
from igkd.networks.network import Classifier, NetworkSpec

ANSWERS = 3
"""Number of classes listed for each image, the most probable first."""
PATIENCE = 10.0
"""Seconds between lines of progress."""
SIMILARITIES = {"cosine": cosine, "rank correlation": rank_correlation}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """N images at the network's size."""

    samples: Samples
    """Labels are indices into the network's classes; -1 if the class is not known."""
    names: tuple[str | None, ...]
    """Names of the images' files; None if the source has no files."""
    scaled_from: tuple[tuple[int, int] | None, ...]
    """Original (height, width) of images that were scaled and cropped; None for the others."""
    left_out: tuple[str, ...]
    """A sentence for each image that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """One network's logits and maps for N images."""

    logits: Tensor
    """float32 (N, classes)."""
    targets: Tensor
    """int64 (N,): the class that each map explains."""
    maps: NDArray[np.float32]
    """float32 (N, H, W), in units of a logit, not negative."""

    def answers(self, i: int) -> list[tuple[int, float]]:
        """(class, probability) of the `ANSWERS` most probable classes of image i (fewer if there are fewer classes)."""
        best = self.logits[i].double().softmax(0).topk(min(ANSWERS, self.logits.shape[1]))
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def read(
    source: ImageSource, split: Split, ids: NDArray[np.int64], numbers: NDArray[np.int64] | None, spec: NetworkSpec, bad: BadImages
) -> Chosen:
    """Read images, and scale and crop them to a network's size.

    Args:
        ids: int64 (N,); the images are returned in this order.
        numbers: the network's label for each label of the source; None if the classes have no counterpart.
        spec: the network's description.

    Raises:
        UserError: an image cannot be used, or with --bad-images skip none of them can.
    """
    left_out: list[tuple[Record, str]] = []
    records = source.read(split, ids.tolist())
    kept = list(decode_all(records, spec.image_shape, True, bad, lambda record, why: left_out.append((record, why)), scaling=spec.scaling))
    if not kept:
        raise UserError(f"{source}: none of {len(ids)} image(s) can be used; the first {left_out[0][1]}")
    sizes = [size(record.image) for record, _ in kept]
    samples = Samples(
        ids=np.array([record.image_id for record, _ in kept], dtype=np.int64),
        pixels=torch.from_numpy(np.stack([pixels for _, pixels in kept])).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor([-1 if numbers is None else int(numbers[record.label]) for record, _ in kept]),
    )
    return Chosen(
        samples=samples,
        names=tuple(printable(record.name) if isinstance(source, FolderImages) else None for record, _ in kept),
        scaled_from=tuple(found if spec.short_side or found != spec.image_shape else None for found in sizes),
        left_out=sentences(left_out),
    )


def look(model: Classifier, samples: Samples, steps: int, name: str, baseline: Colour) -> Looks:
    """Logits and maps of a network; an image's map does not depend on the other images.

    Args:
        model: in evaluation mode, on the device to compute on.
        samples: images of the network's size; for a label of -1, the map explains the network's own answer.
        steps: nodes of integrated gradients.
        name: the network's name in messages.
        baseline: colour of the baseline, in [0, 1]; the same for all networks whose maps are compared.

    Raises:
        UserError: the logits or maps are not all finite numbers.
    """
    logits = predict(model, samples)
    if not logits.isfinite().all():
        raise UserError(f"{name} gives logits that are not all finite numbers: its weights are of no use; train it anew")
    targets = torch.where(samples.labels >= 0, samples.labels, logits.argmax(1))
    # For so few images, compiling a graph takes longer than it saves. One image a call, since rounding depends on the others in a batch.
    attribute = attributor(model, "ig", "torch", steps, baseline)
    ids = torch.from_numpy(samples.ids)
    rows = told(torch.arange(len(samples)).split(1), f"maps of {name}")
    maps = torch.cat([attribute(samples.pixels[i], targets[i], ids[i]).ig for i in rows]).numpy()
    check_finite(maps, samples.ids, name)
    return Looks(logits=logits, targets=targets, maps=maps)


def told(rows: Sequence[Tensor], what: str) -> Iterator[Tensor]:
    """Iterate over the rows, and print how many are done to standard error every `PATIENCE` seconds."""
    last = time.monotonic()
    for done, row in enumerate(rows):
        if time.monotonic() - last > PATIENCE:
            last = time.monotonic()
            print(f"{what}: {done} of {len(rows)}", file=sys.stderr, flush=True)
        yield row


def likeness(student: Looks, teacher: Looks) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Similarity of the student's map to the teacher's of the same image and, as a control, to the teacher's of the previous image.

    Returns:
        for each measure two float64 (N,), similarity and control; NaN if the two maps explain different classes. The control is also
        NaN if there is only one image.
    """
    same = (student.targets == teacher.targets).numpy()
    found = {}
    for name, similarity in SIMILARITIES.items():
        own = np.where(same, similarity(student.maps, teacher.maps), math.nan)
        control = np.where(same & (len(same) > 1), similarity(student.maps, np.roll(teacher.maps, 1, axis=0)), math.nan)
        found[name] = (own, control)
    return found
