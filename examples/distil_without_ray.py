"""The whole method in one file, without Ray and without igkd's jobs: a student that learns from labels, logits and maps of a store.

    python examples/distil_without_ray.py STORE [--student mobilenet:cut=5] [--epochs 20] [--out DIR]

STORE is what `python -m jobs.precompute` has made, on disk or on S3, of any images and any teacher. What this file leaves to the jobs:
several workers, resuming, averaged weights, stores larger than the memory, controls.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from igkd.attribution.overlay import overlay, sharpen
from igkd.images.samples import Samples
from igkd.images.views import draw_view, move
from igkd.networks import checkpoint
from igkd.networks.families import student_name
from igkd.networks.network import Classifier, NetworkSpec, build, parameter_count
from igkd.store import Store

ALPHA, TEMPERATURE = 0.5, 4.0
"""Weight of distillation, and the temperature of both softmaxes (Hinton et al. 2015)."""
OVERLAID, BLEND, EXPONENT = 0.1, 0.5, 2.0
"""Share of the images that are overlaid with their map, the overlay's weight, and the largest exponent of a map."""
PADDING, BATCH, PEAK = 4, 64, 0.05


def make_student(name: str, store: Store, train: Samples) -> Classifier:
    """A student of this name, as wide as its teacher if it is of the same family, that normalises pixels by the training images'."""
    plan, pixels = store.plan, train.pixels.float() / 255
    mean, std = (tuple(of.tolist()) for of in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))))
    full = student_name(name, plan.teacher_network, plan.image_shape)
    return build(NetworkSpec(name=full, classes=plan.classes, image_shape=plan.image_shape, mean=mean, std=std), seed=0)


def augmented(batch: Samples, epoch: int, rng: np.random.Generator) -> Tensor:
    """Crop and flip, images and maps alike; then lay its map over every tenth image. Gives float (B, 3, H, W) in [0, 1]."""
    view = draw_view(0, epoch, batch.ids, PADDING)
    pixels = move(batch.pixels, view).float() / 255
    assert batch.ig is not None
    rows = torch.from_numpy(np.flatnonzero(rng.random(len(batch)) < OVERLAID))
    exponent = torch.from_numpy(EXPONENT ** rng.random(len(rows))).float()
    layer = sharpen(move(batch.ig, view)[rows], exponent)
    return pixels.index_copy(0, rows, overlay(pixels[rows], layer, BLEND))


def loss_of(logits: Tensor, batch: Samples) -> Tensor:
    """(1 - alpha) CE + alpha T^2 KL(teacher || student): a scalar."""
    assert batch.logits is not None
    student, teacher = (F.log_softmax(one / TEMPERATURE, dim=1) for one in (logits, batch.logits))
    distilled = TEMPERATURE**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - ALPHA) * F.cross_entropy(logits, batch.labels) + ALPHA * distilled


@torch.inference_mode()
def accuracy(model: Classifier, samples: Samples) -> float:
    """Share of the images that are classified right."""
    model.eval()
    answers = [model(pixels.float() / 255).argmax(1) for pixels in samples.pixels.split(256)]
    return float((torch.cat(answers) == samples.labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--student", default="mobilenet:cut=5")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, help="directory of the student's checkpoint, which every job and tool of igkd takes")
    arguments = parser.parse_args()

    store = Store.open(arguments.store)
    samples, held_out = store.samples()
    train, validation = samples.select(~held_out), samples.select(held_out)
    model = make_student(arguments.student, store, train)
    print(f"{model.spec.name}, {parameter_count(model):,} parameters, learns from {len(train):,} images of {store.plan.teacher_network}")

    steps = arguments.epochs * -(-len(train) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, steps, pct_start=0.2)
    rng = np.random.default_rng(0)
    for epoch in range(1, arguments.epochs + 1):
        model.train()
        for rows in np.array_split(rng.permutation(len(train)), -(-len(train) // BATCH)):
            batch = train.select(rows)
            loss = loss_of(model(augmented(batch, epoch, rng)), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch}/{arguments.epochs}: loss {loss.item():.3f}, validation {accuracy(model, validation):.1%}", flush=True)
    if arguments.out is not None:
        checkpoint.save(model.eval(), arguments.out, {"store": arguments.store})
        print(f"student: {arguments.out}")


if __name__ == "__main__":
    main()
