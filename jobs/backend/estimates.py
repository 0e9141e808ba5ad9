"""Estimates the time of a sweep on this cluster, and divides the cluster among its runs."""

import math

import ray
import ray.tune
import torch

from igkd.config.distill import DistillConfig
from igkd.networks.network import Classifier
from igkd.store import Store
from igkd.sweeps import estimate
from igkd.sweeps.grid import Cell
from igkd.training.student_data import for_workers, open_teacher_of


def print_estimate(todo: list[Cell], runs_per_gpu: int, price: float | None) -> None:
    """Print number of runs, time and cost, from training steps measured with the resources of one run."""
    if not todo:
        return
    resources, at_once = slots(runs_per_gpu)
    store = Store.open(todo[0].config.store)

    def measured(config: DistillConfig, teacher: Classifier | None) -> estimate.Speed:
        return estimate.measure(config, teacher, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    kinds = {estimate.kind_of(cell.config): cell.config for cell in todo}
    task = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))(measured)
    asked = [task.remote(for_workers(one), open_teacher_of(one)) for one in kinds.values()]
    speeds = dict(zip(kinds, ray.get(asked), strict=True))
    gpus = int(ray.cluster_resources().get("GPU", 0))
    print("\n".join(estimate.lines(todo, speeds, store, at_once, gpus or at_once, "GPU" if gpus else "processor", price)), flush=True)


def slots(runs_per_gpu: int, count: int | None = None) -> tuple[dict[str, float], int]:
    """Resources of one run, and the number of runs at a time.

    Args:
        count: number of runs, if known. If there are few, each gets more than one CPU. If there are up to half as many again as CPUs, all
            run at once, since a second turn would leave CPUs idle.
    """
    resources = ray.cluster_resources()
    cpus, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    if gpus:
        return {"GPU": 1 / runs_per_gpu, "CPU": min(1.0, cpus / (gpus * runs_per_gpu))}, gpus * runs_per_gpu
    if count and count <= cpus:
        node = max(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"])
        return {"CPU": float(max(1, min(int(node), cpus // count)))}, count
    if count and cpus < count <= 1.5 * cpus:
        return {"CPU": math.floor(100 * cpus / count) / 100}, count
    return {"CPU": 1.0}, cpus
