"""Time and memory of an image's map by image size, teacher and number of steps: the figures that docs/scaling.md is based on."""

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.attribution import Worker
from igkd.attribution import choose_engine
from igkd.base import provenance
from igkd.base.storage import write_json
from igkd.config.command_line import parse
from igkd.config.precompute import PrecomputeConfig

MOBILENET, RESNET = "torchvision:mobilenet_v2,weights=none,seed=0", "torchvision:resnet50,weights=none,seed=0"
CASES = (
    ("assets/cifar10-teacher", 32, (10, 25, 50)),
    (MOBILENET, 64, (50,)),
    (MOBILENET, 128, (50,)),
    (MOBILENET, 224, (10, 25, 50)),
    (RESNET, 224, (10,)),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure seconds and memory of one image, with the fast engine and with Captum (internal_batch_size=50), in turns."""

    rounds: int = 3
    """Measurements of each engine; the median counts."""
    out: str | None = None
    """JSON file for the figures."""


def measure(teacher: str, side: int, steps: int, rounds: int) -> dict[str, float | str]:
    """Seconds an image and peak MiB of both engines, on enough random pictures to fill several passes."""
    count = max(8, 32 * 32 * 32 // side**2)  # enough that the padding of the last pass does not matter
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 10
    fast = choose_engine(PrecomputeConfig.engine, "ig", gpu=False)
    workers = {kind: Worker(kind, steps, teacher, torch.get_num_threads()) for kind in (fast, "internal")}
    seconds: dict[str, list[float]] = {kind: [] for kind in workers}
    memory = {}
    for turn in range(rounds + 1):
        for kind, worker in workers.items():
            _, _, took, memory[kind] = worker.ask(pixels, labels)
            if turn:  # the first turn is a warm-up, which includes compiling
                seconds[kind].append(took / count)
    for worker in workers.values():
        worker.close()
    ours, captum = (statistics.median(seconds[kind]) for kind in (fast, "internal"))
    return {
        "teacher": teacher, "side": side, "steps": steps, "engine": fast, "seconds": ours, "captum_seconds": captum,
        "ratio": captum / ours, "peak_mib": memory[fast], "captum_peak_mib": memory["internal"],
    }  # fmt: skip


def main() -> None:
    config, started = parse(Config, "python -m bench.cost"), provenance.now()
    rows = []
    for teacher, side, all_steps in CASES:
        for steps in all_steps:
            row = measure(teacher, side, steps, config.rounds)
            rows.append(row)
            ours = f"{row['engine']} {row['seconds']:7.3f} s, {row['peak_mib']:6,.0f} MiB at most"
            captum = f"captum {row['captum_seconds']:7.3f} s, {row['captum_peak_mib']:6,.0f} MiB"
            print(f"{teacher:45} {side:4} pixels, {steps:3} steps: {ours}; {captum}; {row['ratio']:.2f} x", flush=True)
    if config.out:
        write_json(Path(config.out), {"rows": rows} | provenance.provenance(f"python -m bench.cost --rounds {config.rounds}", 0, started))


if __name__ == "__main__":
    main()
