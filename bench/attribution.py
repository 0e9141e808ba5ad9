"""Speed of integrated gradients: Captum in two ways against our engines, and the overhead of Ray Data."""

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from igkd.attribution import FAST_ENGINES, attributor, choose_engine, takes_one_pass
from igkd.attribution.base import as_float
from igkd.base import provenance
from igkd.base.storage import write_json
from igkd.config.command_line import parse
from igkd.config.precompute import PrecomputeConfig
from igkd.images.open import open_images
from igkd.images.samples import load_samples
from igkd.networks.families import FAMILIES, family_of
from igkd.networks.network import Classifier, build
from igkd.networks.open import open_teacher
from jobs.backend.runtime import WORKER_ENVIRONMENT

BASELINE = "captum, internal_batch_size=50"
FEW = 96
"""Number of images for the comparisons of plain autograd (Captum's and ours), which are slow and least in doubt."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure images a second, peak memory, and agreement with a reference of 300 steps."""

    teacher: str = "assets/cifar10-teacher"
    """Directory of a checkpoint; or the name of a network for images of 32x32, with random weights. Of a homogeneous one, one pass is
    measured, too."""
    images: str = "shapes"
    """The source; maps of its test split are computed."""
    rounds: int = 3
    """Measurements of each engine, in turns; the median counts. 0 leaves speed out."""
    batch: int = 16
    """Number of images in one measurement."""
    steps: int = 50
    """Integration steps."""
    compared: int = 16
    """Number of images whose maps are compared with the reference."""
    ray: int = 0
    """Number of images to compute through jobs.precompute on 1 and 2 CPUs, compared with a plain loop; 0 leaves this out."""
    out: str | None = None
    """JSON file for the figures."""


def captum(model: Classifier, pixels: Tensor, labels: Tensor, steps: int, batch: int, internal: int | None) -> Tensor:
    """Maps (B, H, W) by Captum in batches of `batch` images."""
    engine, maps = IntegratedGradients(model.from_normalised), []
    for x, y in zip(pixels.split(batch), labels.split(batch), strict=True):
        attributions = engine.attribute(model.normalise(as_float(x)), target=y, n_steps=steps, internal_batch_size=internal)
        maps.append(attributions.abs().sum(dim=1).detach())
    return torch.cat(maps)


def teacher_of(name: str) -> Classifier:
    """The network of `Config.teacher`, in evaluation mode."""
    if family_of(name) not in FAMILIES:
        return open_teacher(name)[0]
    like = open_teacher(Config.teacher)[0].spec
    return build(dataclasses.replace(like, name=name), 0).eval()


ONE_PASS = 0
"""In place of a number of steps."""


def engines(config: Config) -> dict[str, tuple[str, int]]:
    """Name -> (kind, steps)."""
    steps = config.steps
    found = {
        "captum, published setting (batch 8)": ("published", steps),
        BASELINE: ("internal", steps),
        "fast: torch": ("torch", steps),
        "fast: openvino": ("openvino", steps),
    }
    fastest = choose_engine("fast", "ig", gpu=False)
    if fastest == "openvino-bf16":
        found["fast: openvino-bf16"] = (fastest, steps)
    if steps == 50:
        found[f"fast: {fastest}, 40 nodes"] = (fastest, 40)
    if takes_one_pass("fast", "ig", teacher_of(config.teacher), load_images(config, 8)[0]):
        found |= {f"one pass: {kind}": (kind, ONE_PASS) for kind in ("torch", "openvino")}
    return found


def serve(pipe: multiprocessing.connection.Connection, kind: str, steps: int, teacher: str, threads: int) -> None:
    """Main loop of a process with one engine: receives (pixels, labels), sends (maps, completeness errors, seconds, peak MiB)."""
    torch.set_num_threads(threads)
    model = teacher_of(teacher)
    ours = attributor(model, "ig", kind, steps, one_pass=steps == ONE_PASS) if kind in FAST_ENGINES else None
    while (work := pipe.recv()) is not None:
        pixels, labels = work
        begin = time.perf_counter()
        if ours is not None:
            result = ours(pixels, labels, labels)
            maps, delta = result.ig, result.delta
        else:
            batch, internal = (8, None) if kind == "published" else (1, 50)
            maps, delta = captum(model, pixels, labels, steps, batch, internal), torch.empty(0)
        pipe.send((maps, delta, time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


class Worker:
    """An engine in its own process, so that its peak memory can be measured; with the environment of our jobs' workers for our engines."""

    def __init__(self, kind: str, steps: int, teacher: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, kind, steps, teacher, threads), daemon=True)
        with mock.patch.dict(os.environ, WORKER_ENVIRONMENT if kind in FAST_ENGINES else {}):
            self.process.start()

    def ask(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float, float]:
        self.pipe.send((pixels, labels))
        answer: tuple[Tensor, Tensor, float, float] = self.pipe.recv()
        return answer

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def load_images(config: Config, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` test images, uint8 (N, 3, H, W), and labels."""
    source = open_images(config.images)
    samples, _ = load_samples(source, "test", np.arange(count))
    return samples.pixels, samples.labels


def measure_speed(config: Config) -> dict[str, dict[str, float]]:
    """Images a second and peak memory of every engine, measured in turns."""
    pixels, labels = load_images(config, config.batch)
    threads = torch.get_num_threads()
    running = {name: Worker(*how, config.teacher, threads) for name, how in engines(config).items()}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    memory: dict[str, float] = {}
    for turn in range(config.rounds + 1):
        for name, engine in running.items():
            _, _, took, memory[name] = engine.ask(pixels, labels)
            if turn:  # the first turn is a warm-up, which includes compiling
                seconds[name].append(took)
    for engine in running.values():
        engine.close()
    rates = {name: config.batch / statistics.median(values) for name, values in seconds.items()}
    return {name: {"images_per_second": rates[name], "ratio": rates[name] / rates[BASELINE], "peak_mib": memory[name]} for name in rates}


def measure_agreement(config: Config) -> dict[str, dict[str, float]]:
    """Cosine and largest difference of every engine's maps to maps with 300 midpoint nodes of the same images.

    Captum's maps do not depend on the batch size, so they are computed once.
    """
    pixels, labels = load_images(config, config.compared)
    threads = torch.get_num_threads()
    compared = {name: how for name, how in engines(config).items() if how[0] != "published"}
    reference = Worker("openvino", 300, config.teacher, threads)
    running = {name: Worker(*how, config.teacher, threads) for name, how in compared.items()}
    cosines: dict[str, list[Tensor]] = {name: [] for name in running}
    differences: dict[str, list[Tensor]] = {name: [] for name in running}
    errors: dict[str, list[Tensor]] = {name: [] for name in running}
    found: dict[str, dict[str, float]] = {}
    for x, y in zip(pixels.split(16), labels.split(16), strict=True):
        truth = reference.ask(x, y)[0].flatten(1).double()
        for name, engine in running.items():
            if compared[name][0] in ("internal", "torch") and sum(map(len, cosines[name])) >= FEW:
                continue
            maps, delta, _, _ = engine.ask(x, y)
            flat = maps.flatten(1).double()
            cosines[name].append(torch.nn.functional.cosine_similarity(flat, truth))
            differences[name].append((flat - truth).abs().amax(dim=1) / truth.amax(dim=1))
            errors[name].append(delta.abs())
            cosine, error = torch.cat(cosines[name]), torch.cat(errors[name])
            found[name] = {
                "images": len(cosine),
                "mean_cosine": cosine.mean().item(),
                "lowest_cosine": cosine.min().item(),
                "largest_difference": torch.cat(differences[name]).max().item(),
            } | ({"median_completeness_error": error.median().item()} if len(error) else {})
        if config.out:  # keeps the results so far if a long comparison is stopped
            write_json(Path(config.out), {"agreement": found})
        print(f"compared {found[name]['images']}/{len(pixels)} images", flush=True)
    for engine in (reference, *running.values()):
        engine.close()
    for name, row in found.items():
        shown = f"mean {row['mean_cosine']:.6f}, lowest {row['lowest_cosine']:.6f}; largest difference {row['largest_difference']:.2%}"
        print(f"{name:38} cosine to 300 nodes: {shown}", flush=True)
    return found


def measure_ray(config: Config) -> dict[str, float]:
    """Images a second of jobs.precompute on 1 and 2 CPUs, from the first finished part to the last, and of the plain loop."""
    context = multiprocessing.get_context("spawn")
    rates = {}
    for processors in (1, 2):
        pixels, labels = load_images(config, config.ray // 4)
        bare = [Worker(choose_engine("fast", "ig", gpu=False), config.steps, config.teacher, 1) for _ in range(processors)]
        for engine in bare:
            engine.ask(pixels[:2], labels[:2])
        begin = time.perf_counter()
        for engine in bare:
            engine.pipe.send((pixels, labels))
        for engine in bare:
            engine.pipe.recv()
        rates[f"bare, {processors}"] = processors * len(pixels) / (time.perf_counter() - begin)
        for engine in bare:
            engine.close()
        pipe, other = context.Pipe()
        process = context.Process(target=run_ray, args=(other, config, processors))
        process.start()
        rates[f"ray, {processors}"] = pipe.recv()
        process.join()
        print(
            f"{processors} processor(s): bare loop {rates[f'bare, {processors}']:.2f} images/s, through Ray Data "
            f"{rates[f'ray, {processors}']:.2f}, {rates[f'ray, {processors}'] / rates[f'bare, {processors}']:.0%}",
            flush=True,
        )
    return rates


def run_ray(pipe: multiprocessing.connection.Connection, config: Config, processors: int) -> None:
    from jobs import precompute
    from jobs.backend import runtime

    size = max(1, config.ray // 8)
    runtime.start_ray(num_cpus=processors)
    with tempfile.TemporaryDirectory() as directory:
        settings = PrecomputeConfig(
            images=config.images, split="test", teacher=config.teacher, store=f"{directory}/store", limit=config.ray, steps=config.steps,
            rows_per_file=size,
        )  # fmt: skip
        precompute.precompute_store(settings)
        done = sorted(path.stat().st_mtime for path in Path(directory).glob("store/part-*"))
    # The first part of every actor carries its start.
    pipe.send((len(done) - processors) * size / (done[-1] - done[processors - 1]))


def main() -> None:
    config, started = parse(Config, "python -m bench.attribution"), provenance.now()
    rows = measure_speed(config) if config.rounds else {}
    for name, row in rows.items():
        print(f"{name:38} {row['images_per_second']:6.2f} images/s  {row['ratio']:5.2f} x  {row['peak_mib']:7,.0f} MiB at most", flush=True)
    agreement = measure_agreement(config)
    result: dict[str, Any] = {"speed": rows, "agreement": agreement}
    if config.ray:
        result["ray"] = measure_ray(config)
    if config.out:
        command = (
            f"python -m bench.attribution --teacher {config.teacher} --images {config.images} --batch {config.batch} "
            f"--rounds {config.rounds} --compared {config.compared} --ray {config.ray}"
        )
        write_json(Path(config.out), result | provenance.provenance(command, 0, started))


if __name__ == "__main__":
    main()
