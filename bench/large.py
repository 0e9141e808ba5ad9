"""Images a second of reading, attribution and training at 224 pixels, side by side, and which of them waits for which."""

import io
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from igkd import attribution
from igkd.base import provenance
from igkd.base.storage import write_json
from igkd.config.command_line import parse
from igkd.config.recipes import distill_config
from igkd.images.codec import Scaling, decode, pixel_hash
from igkd.images.samples import Samples
from igkd.images.views import draw_resized_view, move
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.networks.open import open_teacher
from igkd.training.batches import Resident
from igkd.training.loop import Learner, compute_loss, learn
from igkd.training.optimizer import make_optimizer

TEACHER = "torchvision:resnet18,weights=none,seed=0"
STUDENT = "lean:4:32x2,64x2,128x2"
JPEG_SHAPE = (375, 500)
"""(height, width) in pixels of the photographs that are read: ImageNet's most frequent size."""
NODES = 50
"""Integration steps that the speed of attribution is stated for; the time is linear in them."""
READING, ATTRIBUTION, CROPS, TRAINING = "reading", f"attribution, {NODES} steps", "resized crops", "training"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure decoding JPEGs, attributing by a ResNet-18, cropping and training a small student, all at 224 pixels, in turns."""

    pictures: int = 64
    """Number of JPEGs in one measurement of reading, and of images in one of cropping."""
    maps: int = 4
    """Number of maps in one measurement."""
    steps: int = 4
    """Integration steps that are measured, scaled to 50."""
    batches: int = 2
    """Training steps in one measurement."""
    batch_size: int = 32
    """Images in one training step."""
    rounds: int = 3
    """Number of rounds after a first one that does not count; the median counts."""
    out: str | None = None
    """JSON file for the figures."""


def photographs(number: int) -> list[bytes]:
    """JPEGs of random pictures with details of all sizes, as photographs have, of 80 KB each; those of ImageNet have 110 KB on average."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(number):
        picture = torch.zeros(3, *JPEG_SHAPE)
        for side in (4, 16, 64, 256, 512):
            spots = torch.randn(1, 3, side, side, generator=generator) / side**0.2
            picture += F.interpolate(spots, size=JPEG_SHAPE, mode="bilinear", align_corners=False)[0]
        pixels = (picture * 45 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def trainer(pixels: Tensor, classes: int, config: Config) -> Callable[[], int]:
    """A function that trains the student for some steps on resized crops with logits, and gives the number of images."""
    settings = distill_config("strong", store="", out="out", arm="kd", logits="image", batch_size=config.batch_size)
    optimisation, total = settings.optimisation, config.batch_size * config.batches
    generator = torch.Generator().manual_seed(0)
    samples = Samples(
        ids=np.arange(total),
        pixels=pixels[torch.arange(total) % len(pixels)],
        labels=torch.randint(classes, (total,), generator=generator),
        signals={"logits": torch.randn(total, classes, generator=generator)},
    )
    spec = NetworkSpec(name=STUDENT, classes=tuple(map(str, range(classes))), image_shape=samples.shape)
    model = build(spec, 0).to(memory_format=torch.channels_last).train()
    learner = Learner(
        model=model, optimizer=make_optimizer(model, optimisation), optimisation=optimisation, objective=settings.objective, seed=0
    )
    feed, epochs = Resident(samples, optimisation, settings.objective, 0, torch.device("cpu")), count(1)

    def train() -> int:
        epoch, seen = next(epochs), 0
        for batch in islice(feed.epoch(epoch), config.batches):
            learn(learner, compute_loss(learner, batch, epoch)[0], 1.0)
            seen += batch.size
        return seen

    return train


def works(teacher: Classifier, config: Config) -> dict[str, Callable[[], float]]:
    """What is measured, by name: each does its work on all cores and gives the number of images that it did."""
    spec, cores = teacher.spec, os.cpu_count() or 1
    scaling, jpegs = Scaling(spec.short_side, spec.interpolation), photographs(config.pictures)
    pool = ThreadPoolExecutor(cores)  # PIL decodes and scales without holding Python's lock

    def read_one(jpeg: bytes) -> Tensor:
        picture = decode(jpeg, spec.image_shape, scaling)
        pixel_hash(picture)  # as when a store is made or read
        return torch.from_numpy(picture.copy()).permute(2, 0, 1)

    def read() -> float:
        return len(list(pool.map(read_one, jpegs)))

    pixels = torch.stack(list(pool.map(read_one, jpegs)))
    some = pixels[: config.maps].float() / 255
    labels = torch.arange(len(some))
    engine, _ = attribution.find_engine("fast", "ig", False, teacher, spec.image_shape)
    attribute = attribution.attributor(teacher, "ig", engine, config.steps)

    def attribute_some() -> float:
        attribute(some, labels, labels)
        return len(some) * config.steps / NODES

    view = draw_resized_view(0, 1, np.arange(len(pixels)), spec.image_shape)

    def crop() -> float:
        return len(move(pixels, view).float().div(255))

    return {READING: read, ATTRIBUTION: attribute_some, CROPS: crop, TRAINING: trainer(pixels, len(spec.classes), config)}


def rates(wanted: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Images a second of each, the median over rounds; they are measured in turns."""
    found: dict[str, list[float]] = {name: [] for name in wanted}
    for turn in range(rounds + 1):
        for name, work in wanted.items():
            begin = time.perf_counter()
            images = work()
            if turn:  # the first turn is a warm-up
                found[name].append(images / (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in found.items()}


def waits(rate: dict[str, float]) -> dict[str, float]:
    """The share of a processor's time that goes to reading, where it reads an image and then works on it."""
    return {
        f"share of reading beside {name}": (1 / rate[READING]) / (1 / rate[READING] + 1 / rate[name]) for name in (ATTRIBUTION, TRAINING)
    }


def sentence(rate: dict[str, float], name: str) -> str:
    """Which one waits, in words."""
    faster, slower = (READING, name) if rate[READING] >= rate[name] else (name, READING)
    share = waits(rate)[f"share of reading beside {name}"]
    return (
        f"{name}: {slower} is the slower, {faster} waits for it ({rate[faster] / rate[slower]:.1f} times as fast); on the same processors "
        f"{share:.0%} of the time is reading"
    )


def main() -> None:
    config, started = parse(Config, "python -m bench.large"), provenance.now()
    teacher, _ = open_teacher(TEACHER)
    print(provenance.machine(), flush=True)
    found = rates(works(teacher, config), config.rounds)
    for name, value in found.items():
        print(f"{name:28} {value:8.2f} images/s on {os.cpu_count()} processors", flush=True)
    for name in (ATTRIBUTION, TRAINING):
        print(sentence(found, name), flush=True)
    if config.out:
        command = f"python -m bench.large --rounds {config.rounds}"
        figures = {"images_per_second": found, **waits(found), "teacher": TEACHER, "student": STUDENT}
        load = {"load": os.getloadavg()[1], "processors": os.cpu_count()}
        write_json(Path(config.out), figures | load | provenance.provenance(command, 0, started))


if __name__ == "__main__":
    main()
