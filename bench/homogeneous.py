"""What leaving out biases costs and gains: the same network with and without, as teachers, and their students; by the jobs themselves."""

import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igkd.base import provenance
from igkd.base.storage import read_json, write_json
from igkd.config.command_line import parse
from igkd.sweeps.ledger import read_rows

FAMILIES = ("lean", "homogeneous")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train both teachers equally, compute both stores, and train the same students from each."""

    images: str
    """Image source with test images, such as cifar10."""
    out: str
    """Directory of everything; the same command continues what is there."""
    network: str = "1:24x2,48x2,96x2"
    """What follows lean: and homogeneous: in the teachers' names."""
    student: str = "lean:2:16x1,32x1,64x1"
    """The students' network."""
    epochs: int = 30
    """Of the teachers and of the students."""
    arms: tuple[str, ...] = ("student", "kd", "kd+ig")
    """What the students learn from."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the students; the teachers have the first."""
    limit: int | None = None
    """Only this many images in the stores, which the students learn from."""
    quick: bool = False
    """2 epochs, one seed, 1,000 images in the stores: shows that all of it runs; its figures say nothing."""


def job(name: str, *arguments: object) -> None:
    """Run a job; ends the program with the job's status if it fails."""
    ended = subprocess.run([sys.executable, "-m", f"jobs.{name}", *map(str, arguments)], check=False).returncode
    if ended:
        sys.exit(ended)


def measure(config: Config, family: str) -> dict[str, Any]:
    """Figures of one teacher and of its students."""
    epochs, seeds, limit = (2, config.seeds[:1], 1000) if config.quick else (config.epochs, config.seeds, config.limit)
    out = Path(config.out) / family
    teacher, stored = out / "teacher", out / "store"
    network = f"{family}:{config.network}"
    job("teacher", "--images", config.images, "--network", network, "--epochs", epochs, "--seed", seeds[0], "--out", teacher)
    limited = [] if limit is None else ["--limit", limit]
    job("precompute", "--images", config.images, "--teacher", teacher, "--student", config.student, "--store", stored, *limited)
    students = ["--students", config.student, "--arms", *config.arms, "--seeds", *seeds, "--epochs", epochs]
    job("ablate", "--store", stored, "--test-images", config.images, "--out", out / "students", *students)
    found: dict[str, list[float]] = {}
    for row in read_rows(out / "students"):
        found.setdefault(row["arm"], []).append(row["test"]["accuracy"])
    plan = read_json(stored / "plan.json")
    return {
        "teacher_validation_accuracy": read_json(teacher / "result.json")["history"][-1]["validation_accuracy"],
        "maps": plan["quadrature"],
        "students": {arm: {"seeds": len(values), "mean_accuracy": statistics.mean(values)} for arm, values in found.items()},
    }


def main() -> None:
    config, started = parse(Config, "python -m bench.homogeneous"), provenance.now()
    found = {family: measure(config, family) for family in FAMILIES}
    for family, figures in found.items():
        students = ", ".join(f"{arm} {one['mean_accuracy']:.2%}" for arm, one in figures["students"].items())
        print(f"{family}: teacher {figures['teacher_validation_accuracy']:.2%} (validation), students {students} (test)")
    write_json(Path(config.out) / "homogeneous.json", found | provenance.provenance(provenance.command(), config.seeds[0], started))


if __name__ == "__main__":
    main()
