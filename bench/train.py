"""Speed of training: the published loop (transforms of single images in a DataLoader) against ours (batched on the device)."""

import multiprocessing
import multiprocessing.connection
import os
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from igkd.base import provenance
from igkd.base.choices import Precision
from igkd.base.storage import write_json
from igkd.config.command_line import parse
from igkd.config.presets import RESIDUAL
from igkd.config.recipes import distill_config
from igkd.images.open import open_images
from igkd.images.samples import Samples, load_samples
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.training.batches import Resident
from igkd.training.execution import Compiled, multiplies_in_bfloat16
from igkd.training.loop import Learner, compute_loss, learn
from igkd.training.optimizer import make_optimizer
from jobs.backend.runtime import WORKER_ENVIRONMENT

BASELINE, COMPILED = "published loop", "compiled"
NETWORKS = ("mobilenet", "mobilenet:cut=5", RESIDUAL)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Images a second of a training step of the paper's recipe, arm kd+ig, for the teacher's network, cut 5 and a residual student."""

    images: str = "shapes"
    """The source, whose test split is trained on; maps and logits are noise, which costs the same."""
    count: int = 2000
    """Number of images."""
    steps: int = 12
    """Training steps in one measurement."""
    rounds: int = 5
    """Measurements of each loop, in turns; the median counts."""
    out: str | None = None
    """JSON file for the figures."""


def samples_of(config: Config) -> Samples:
    """Pictures, with noise in place of the teacher's maps and logits."""
    samples, _ = load_samples(open_images(config.images), "test", np.arange(config.count))
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(len(samples), *samples.shape, generator=generator)
    return samples.with_signals(ig=maps, logits=torch.randn(len(samples), 10, generator=generator))


class Published(Dataset[tuple[Tensor, int, Tensor]]):
    """The published data set, rewritten: applies torchvision's transforms to each image, and overlays every tenth."""

    def __init__(self, samples: Samples) -> None:
        assert samples.ig is not None and samples.logits is not None
        self.pictures = [v2.functional.to_pil_image(p) for p in samples.pixels]
        self.labels, self.maps, self.logits = samples.labels.tolist(), samples.ig, samples.logits
        crop = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose([*crop, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, int, Tensor]:
        image = self.transform(self.pictures[i])
        if torch.rand(()) < 0.1:
            powered = self.maps[i] ** torch.exp(torch.rand(()) * np.log(2))
            image = 0.5 * image + 0.5 * (powered - powered.min()) / (powered.max() - powered.min())
        return image, self.labels[i], self.logits[i]


def published(model: Classifier, samples: Samples, device: torch.device) -> Iterator[int]:
    """Train by the published loop; yields the number of images of each step."""
    loader = DataLoader(Published(samples), batch_size=64, shuffle=True, num_workers=2, persistent_workers=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    while True:
        for images, labels, teacher in loader:
            images, labels, teacher = images.to(device), labels.to(device), teacher.to(device)
            student = model(images)
            kd = F.kl_div(F.log_softmax(student / 2.5, 1), F.log_softmax(teacher / 2.5, 1), reduction="batchmean", log_target=True)
            loss = 0.01 * 2.5**2 * kd + 0.99 * F.cross_entropy(student, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            yield len(images)


def ours(model: Classifier, samples: Samples, device: torch.device, precision: Precision, compiled: bool) -> Iterator[int]:
    """Train by the step of igkd.training.loop; yields the number of images of each step."""
    config = distill_config("paper", store="", test_images="", out="out", precision=precision)
    model.to(memory_format=torch.channels_last)
    feed = Resident(samples, config.optimisation, config.objective, 0, device)
    learner = Learner(
        model=model,
        optimizer=make_optimizer(model, config.optimisation),
        optimisation=config.optimisation,
        objective=config.objective,
        seed=0,
        compiled=Compiled(model, lambda line: print(line, flush=True)) if compiled else None,
    )
    epoch = 0
    while True:
        epoch += 1
        for batch in feed.epoch(epoch):
            learn(learner, compute_loss(learner, batch, epoch)[0], 1.0)
            yield batch.size


def serve(pipe: multiprocessing.connection.Connection, loop: str, network: NetworkSpec, config: Config, threads: int) -> None:
    """Main loop of a process that trains: receives a number of steps, sends (images, seconds, peak MiB)."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples = samples_of(config)
    model = build(network, 0).to(device).train()
    if loop == BASELINE:
        running = published(model, samples, device)
    else:
        running = ours(model, samples, device, "auto" if loop == COMPILED else loop, loop == COMPILED)  # type: ignore[arg-type]
    while (steps := pipe.recv()) is not None:
        begin = time.perf_counter()
        images = sum(islice(running, steps))
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send((images, time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def loops() -> list[str]:
    """Names of the loops that can be measured on this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if multiplies_in_bfloat16(device):
        return [BASELINE, "float32", "bfloat16", COMPILED]
    print("bfloat16 is left out: this machine has no instructions for it, and precision auto is float32", flush=True)
    return [BASELINE, "float32", COMPILED]


def measure(network: NetworkSpec, config: Config) -> dict[str, dict[str, float]]:
    """Measure every loop with one network, in turns, each loop in its own process."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for loop in loops():
        pipes[loop], other = context.Pipe()
        with mock.patch.dict(os.environ, {} if loop == BASELINE else WORKER_ENVIRONMENT):
            context.Process(target=serve, args=(other, loop, network, config, torch.get_num_threads())).start()
    rates: dict[str, list[float]] = {loop: [] for loop in pipes}
    ratios: dict[str, list[float]] = {loop: [] for loop in pipes}
    memory = {}
    for turn in range(config.rounds + 1):
        now = {}
        for loop, pipe in pipes.items():
            pipe.send(config.steps)
            images, seconds, memory[loop] = pipe.recv()
            now[loop] = images / seconds
        if turn:  # the first turn is a warm-up, which includes compiling
            for loop, rate in now.items():
                rates[loop].append(rate)
                ratios[loop].append(rate / now[BASELINE])
    for pipe in pipes.values():
        pipe.send(None)
    return {
        loop: {"images_per_second": statistics.median(rates[loop]), "ratio": statistics.median(ratios[loop]), "peak_mib": memory[loop]}
        for loop in pipes
    }


def main() -> None:
    config, started = parse(Config, "python -m bench.train"), provenance.now()
    shape = samples_of(config).shape
    print(provenance.machine(), flush=True)
    found = {}
    for name in NETWORKS:
        found[name] = measure(NetworkSpec(name=name, classes=tuple("0123456789"), image_shape=shape), config)
        for loop, row in found[name].items():
            print(
                f"{name:24} {loop:16} {row['images_per_second']:8.1f} images/s  {row['ratio']:5.2f} x  {row['peak_mib']:7,.0f} MiB at most",
                flush=True,
            )
    if config.out:
        command = f"python -m bench.train --images {config.images} --steps {config.steps} --rounds {config.rounds}"
        write_json(Path(config.out), {"networks": found} | provenance.provenance(command, 0, started))


if __name__ == "__main__":
    main()
