"""Estimates the time of a sweep from training steps measured on the machine that will run it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from igkd.base.time_limit import duration
from igkd.config.distill import DistillConfig
from igkd.evaluation.evaluate import predict
from igkd.images.open import open_images
from igkd.networks.network import Classifier
from igkd.store import Store
from igkd.sweeps.grid import Cell
from igkd.training.run import Trainer
from igkd.training.student_data import distill_task

STEPS = 8
"""Number of steps in one measurement, after as many for warm-up."""
DEVICES = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The settings that decide a run's speed; runs of one kind are measured once."""

    student: str
    live: bool
    attention: bool
    features: bool
    map_every: int
    """Every so manyth step compares maps; 0 for none."""
    batch_size: int
    precision: str
    low_resolution: bool
    """Whether some of its epochs are of low resolution."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds for each image, on one run's share of the device."""

    train: float
    low: float
    """As `train`, in an epoch of low resolution."""
    judge: float
    """Seconds of evaluation: forward passes of the student and, if it is available, the teacher."""


def kind_of(config: DistillConfig) -> Kind:
    """The kind of a run."""
    objective = config.objective
    return Kind(
        student=config.student,
        live=objective.logits == "live",
        attention=objective.gamma > 0,
        features=objective.feature_weight > 0,
        map_every=objective.map_every if objective.map_weight > 0 else 0,
        batch_size=config.batch_size,
        precision=config.precision,
        low_resolution=config.low_resolution_epochs > 0,
    )


def measure(config: DistillConfig, teacher: Classifier | None, device: torch.device) -> Speed:
    """Measure some training steps and evaluate some images; writes nothing, and reads no test images."""
    store = Store.open(config.store)
    parts = range(min(store.plan.parts, -(-2 * STEPS * config.batch_size // store.plan.rows_per_file)))
    rows = store.samples(parts, views=config.which_logits == "views")
    samples = rows[0]
    # All images are used for both: the speed of a step does not depend on which images it uses.
    train = samples.select(np.arange(len(samples))[: STEPS * config.batch_size])

    def trained(low_resolution_epochs: int) -> tuple[Trainer, float]:
        short = replace(config, test_images=None, epochs=2, low_resolution_epochs=low_resolution_epochs, share=1.0)
        task = distill_task(short, teacher, (samples, np.zeros(len(samples), np.bool_)))
        task = replace(task, train=train, count=len(train), validation=train.select(np.arange(min(2, len(train)))))
        trainer = Trainer(task, lambda network: network.to(device), progress=lambda line: None)
        return trainer, list(trainer.epochs())[-1][-1]["seconds"] / len(train)

    trainer, whole = trained(0)
    low = trained(2)[1] if config.low_resolution_epochs else whole
    some = train.select(np.arange(min(128, len(train))))
    networks = [trainer.model] if trainer.teacher is None else [trainer.model, trainer.teacher]
    trainer.model.eval()
    predict(trainer.model, some)
    begin = time.perf_counter()
    for network in networks:
        predict(network, some)
    return Speed(train=whole, low=low, judge=(time.perf_counter() - begin) / len(some))


def seconds_of(config: DistillConfig, speed: Speed, train: int, validation: int, test: int) -> float:
    """Seconds of one run on its share of a device: training and validation in each epoch, and test images at the end.

    The evaluation of maps at the end (--maps) is not included.
    """
    low = config.low_resolution_epochs
    steps = config.share * train * ((config.epochs - low) * speed.train + low * speed.low)
    return steps + (config.epochs * validation + test) * speed.judge


def lines(
    cells: Sequence[Cell], speeds: Mapping[Kind, Speed], store: Store, slots: int, devices: int, device: str, price: float | None
) -> list[str]:
    """The grid, its time and its cost, as lines for a terminal.

    Args:
        cells: the runs that are not done yet.
        slots: number of runs at a time on all devices.
        devices: number of GPUs of this cluster, or of CPUs if it has none.
        device: what to call one of these.
        price: price of an hour of one device.
    """
    held_out = int(store.column("validation").sum())
    train = int(store.manifest["rows"]) - held_out
    images = cells[0].config.test_images if cells else None
    test = 0 if images is None else len(open_images(images).checked_labels("test"))
    groups: dict[tuple[str, str, float], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.label, cell.config.student, cell.config.share), []).append(cell)
    total = 0.0
    found = [f"{'run':30} {'network':24} {'share':>5} {'seeds':>5} {'epochs':>6} {'each':>12}"]
    for (label, network, share), group in groups.items():
        config = group[0].config
        each = seconds_of(config, speeds[kind_of(config)], train, held_out, test)
        total += each * len(group)
        found.append(f"{label[:30]:30} {network[:24]:24} {share:5.0%} {len(group):5} {config.epochs:6} {duration(each):>12}")
    per_device = slots / devices
    found += ["", f"{len(cells)} runs on {train:,} images; from steps measured here, with {per_device:g} run(s) on each {device}:"]
    for count in sorted({*DEVICES, devices}):
        wall = total / (count * per_device)
        cost = "" if price is None else f", cost {price * count * wall / 3600:,.2f}"
        here = "  (as here)" if count == devices else ""
        found.append(f"  {count:3} {device}{'s' if count > 1 else ' '}  {duration(wall):>12}{cost}{here}")
    return found
