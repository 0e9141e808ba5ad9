"""How long a sweep will take on this cluster, and what a run gets of it."""

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
    """Print runs, time and cost, from steps measured on as much of the cluster as a run gets."""
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
    """What a run takes of the cluster, and how many go on at the same time.

    Args:
        count: of runs, if there may be so few of them that each gets more than one processor; or up to half as many again as there are
            processors, which then all begin at once instead of leaving processors idle in a second turn.
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
