"""Latency of untrained lean students relative to a teacher: ONNX Runtime int8, one image a pass, one thread, in turns."""

from dataclasses import dataclass, replace
from pathlib import Path

from igkd.config.command_line import parse
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, NetworkSpec, parameter_count
from igkd.store import Store
from igkd.sweeps.candidates import candidates
from igkd.sweeps.speed_search import measured_latencies


@dataclass(frozen=True, kw_only=True)
class Config:
    """Do the first half of jobs.search, the timing of candidates, without Ray and without training."""

    store: str
    """A store with images of the teacher's size, which int8 is calibrated on."""
    out: str
    """Directory for latencies.json; the same command resumes."""
    teacher: str = "assets/cifar10-teacher"
    """Directory of a checkpoint."""
    candidates: int = 24
    """Number of random architectures to time."""
    rounds: int = 20
    """Rounds, of 5 passes of each model."""
    seed: int = 0
    """Seed of the architectures."""


def main() -> None:
    config = parse(Config, "python -m bench.lean")
    spec: NetworkSpec = checkpoint.load(config.teacher).spec
    cut = replace(spec, name="mobilenet:cut=5")
    found = candidates(parameter_count(Classifier(cut)), config.candidates, config.seed, len(spec.classes), spec.image_shape)
    specs = [cut, *(replace(spec, name=f"lean:{one}") for one in found)]
    measured = measured_latencies(Path(config.out), specs, config.teacher, Store.open(config.store), config.rounds, 8.0)
    for one in sorted(measured.measured, key=lambda one: -one.times_as_fast):
        print(f"{one.times_as_fast:6.2f} {one.times_as_fast_as_eager:7.1f}  {one.milliseconds:.3f} ms  {one.parameters:7,}  {one.network}")


if __name__ == "__main__":
    main()
