"""Speed of computing the logits of crops, and how much faster a student trains with them than with a live teacher."""

import dataclasses
import statistics
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from igkd.attribution.openvino import has_bfloat16
from igkd.base import provenance
from igkd.base.choices import Forwards
from igkd.base.storage import write_json
from igkd.config.command_line import parse
from igkd.config.recipes import distill_config
from igkd.images.open import open_images
from igkd.images.samples import load_samples
from igkd.networks.network import Classifier, build
from igkd.networks.open import open_teacher
from igkd.store import forwards
from igkd.training.batches import Resident
from igkd.training.loop import Learner, compute_loss, learn
from igkd.training.optimizer import make_optimizer

CROPS = 162


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure crops a second by each engine, and images a second of training cut 5 with stored and with live logits, in turns."""

    teacher: str = "assets/cifar10-teacher"
    """Directory of a checkpoint."""
    images: str = "shapes"
    """The source, whose test split is used."""
    crops: int = 640
    """Number of crops in one measurement of an engine."""
    steps: int = 4
    """Training steps in one measurement."""
    rounds: int = 3
    """Number of rounds; medians of rates, and of ratios within a round, count."""
    out: str | None = None
    """JSON file for the figures."""


def rate(count: int, begin: float) -> float:
    return count / (time.perf_counter() - begin)


def measure_engines(teacher: Classifier, pixels: torch.Tensor, rounds: int) -> dict[str, float]:
    """Crops a second of each engine, and the largest difference of a logit from torch's."""
    engines: list[Forwards] = ["torch", "openvino", *(["openvino-bf16"] if has_bfloat16() else [])]  # type: ignore[list-item]
    answers = {engine: forwards.answering(teacher, engine) for engine in engines}
    exact = answers["torch"](pixels)
    found: dict[str, float] = {}
    rates: dict[str, list[float]] = {engine: [] for engine in engines}
    for turn in range(rounds + 1):
        for engine, answer in answers.items():
            begin = time.perf_counter()
            logits = answer(pixels)
            if turn:
                rates[engine].append(rate(len(pixels), begin))
            found[f"{engine}, largest difference of a logit"] = (logits - exact).abs().max().item()
    return found | {f"{engine}, crops a second": statistics.median(values) for engine, values in rates.items()}


def measure_training(teacher: Classifier, config: Config) -> dict[str, float]:
    """Images a second of training with stored and with live logits, and their ratio."""
    settings = distill_config("strong", store="", out="out", arm="kd")
    optimisation = settings.optimisation
    samples, _ = load_samples(open_images(config.images), "test", np.arange(min(1000, 4 * optimisation.batch_size)))
    shape = (9, 9, 2, len(teacher.spec.classes))
    samples = samples.with_signals(views=torch.randn(len(samples), *shape).half())
    model = build(dataclasses.replace(teacher.spec, name="mobilenet:cut=5"), 0).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, optimisation)
    learner = Learner(model=model, optimizer=optimizer, optimisation=optimisation, objective=settings.objective, seed=0, teacher=teacher)

    def run(objective: object, steps: int) -> float:
        chosen = dataclasses.replace(settings.objective, logits=objective)  # type: ignore[arg-type]
        asked = dataclasses.replace(learner, objective=chosen)
        feed = Resident(samples, optimisation, chosen, 0, torch.device("cpu"))
        begin, seen = time.perf_counter(), 0
        for batch in islice(feed.epoch(1), steps):
            learn(asked, compute_loss(asked, batch, epoch=1)[0], 1.0)
            seen += batch.size
        return rate(seen, begin)

    rounds = [{how: run(how, config.steps) for how in ("views", "live")} for _ in range(config.rounds + 1)][1:]
    found = {f"training with {how}, images a second": statistics.median(one[how] for one in rounds) for how in ("views", "live")}
    return found | {"views against live": statistics.median(one["views"] / one["live"] for one in rounds)}


def main() -> None:
    config, started = parse(Config, "python -m bench.views"), provenance.now()
    teacher, _ = open_teacher(config.teacher)
    samples, _ = load_samples(open_images(config.images), "test", np.arange(config.crops))
    print(provenance.machine(), flush=True)
    found = measure_engines(teacher, samples.pixels, config.rounds) | measure_training(teacher, config)
    for name, value in found.items():
        print(f"{name:48} {value:10.4g}", flush=True)
    best = max(value for name, value in found.items() if name.endswith("crops a second"))
    print(f"{CROPS} crops of 50,000 images take {CROPS * 50_000 / best / 3600:.1f} h by the fastest", flush=True)
    if config.out:
        write_json(
            Path(config.out), {"figures": found} | provenance.provenance(f"python -m bench.views --images {config.images}", 0, started)
        )


if __name__ == "__main__":
    main()
