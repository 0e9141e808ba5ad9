"""Says when a job will wait for processors, because other jobs hold those of the cluster."""

from collections.abc import Mapping
from typing import Any

import ray


def waits(needed: Mapping[str, float], free: Mapping[str, float], there: Mapping[str, float]) -> str:
    """A sentence if a job has to wait for resources; "" if enough are free.

    Args:
        needed: resources without which the job cannot begin, by Ray's names.
        free: resources that no job holds.
        there: all resources of the cluster.
    """
    names = {"CPU": "processor", "GPU": "GPU"}
    for resource, name in names.items():
        wanted, left, total = (given.get(resource, 0.0) for given in (needed, free, there))
        if left < wanted <= total:
            several = "s" if wanted > 1 else ""
            return f"waits for {wanted:g} {name}{several}: {total - left:g} of the cluster's {total:g} are held by other jobs"
    return ""


def say_if_waiting(each: Any, count: int = 1) -> None:
    """Print a line if a job will have to wait for resources. Ray itself waits without a word.

    Args:
        each: the resources of one worker, a mapping of names to amounts as Ray Train and Ray Tune have it.
        count: number of workers without which the job cannot begin.
    """
    needed = {name: count * amount for name, amount in (each or {}).items()}
    if said := waits(needed, ray.available_resources(), ray.cluster_resources()):
        print(said, flush=True)
