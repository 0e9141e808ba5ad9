"""Integrated gradients: our reference engine against Captum called as the published code calls it."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from igkd import models, runs, shapes
from igkd.attribution import integrated_gradients
from igkd.config import parse
from igkd.files import write_json


@dataclass(frozen=True, kw_only=True)
class Config:
    """Images a second and page faults of both, on the CIFAR MobileNet-V2 with random weights."""

    rounds: int = 3
    """Times that each is measured, taking turns; the median counts."""
    images: int = 8
    """Images a measurement."""
    steps: int = 50
    out: str | None = None
    """JSON file for the figures."""


def published(model: models.Classifier, pixels: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Maps (B, H, W) by one call of Captum for all images and steps."""
    engine = IntegratedGradients(model.from_normalised)
    attributions: Tensor = engine.attribute(model.normalise(pixels), target=labels, n_steps=steps)
    return attributions.abs().sum(dim=1)


def main() -> None:
    config, started = parse(Config, "bench.attribution"), runs.now()
    spec = models.ModelSpec(classes=shapes.CLASSES, image_shape=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    model = models.build(spec, seed=0).eval()
    drawn = [shapes.draw(0, "test", i)[0] for i in range(config.images)]
    pixels = torch.stack([torch.from_numpy(d).permute(2, 0, 1) for d in drawn]).float() / 255
    labels = torch.arange(config.images) % 10
    engines: dict[str, Callable[[], Tensor]] = {
        "captum, published setting (batch 8)": lambda: torch.cat(
            [published(model, x, y, config.steps) for x, y in zip(pixels.split(8), labels.split(8), strict=True)]
        ),
        "igkd captum engine": lambda: integrated_gradients(model, pixels, labels, config.steps).ig,
    }
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    faults: dict[str, int] = {}
    maps: dict[str, Tensor] = {}
    for turn in range(config.rounds + 1):
        for name, engine in engines.items():
            before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            maps[name] = engine()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - begin)
                faults[name] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    rates = {name: config.images / statistics.median(values) for name, values in seconds.items()}
    baseline, ours = engines
    largest = (maps[baseline] - maps[ours]).abs().max().item()
    for name, rate in rates.items():
        print(f"{name:38} {rate:6.2f} images/s   {faults[name] / config.images:10,.0f} page faults an image")
    print(f"ratio {rates[ours] / rates[baseline]:.2f}, largest difference of the maps {largest:.1e}")
    if config.out:
        row = {"images_per_second": rates, "ratio": rates[ours] / rates[baseline], "largest_difference": largest}
        write_json(Path(config.out), row | runs.provenance("python -m bench.attribution", 0, started))


if __name__ == "__main__":
    main()
