"""Says when a job will wait for processors: because other jobs hold those of the cluster, or other programs keep this machine busy."""

import os
from collections.abc import Mapping
from typing import Any

import ray

BUSY = 2.0
"""Programs that want to compute for each processor, above which a machine counts as busy."""


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


def busy(load: float, processors: int) -> str:
    """A sentence if other programs keep a machine busy; "" if not.

    Args:
        load: the load average of a minute.
        processors: number of processors.
    """
    if load <= BUSY * processors:
        return ""
    return f"other programs keep this machine's {processors} processor(s) busy (load {load:.0f}): all will take longer"


def say_if_waiting(each: Any, count: int = 1) -> None:
    """Print a line if a job will have to wait for resources. Ray itself waits without a word.

    Args:
        each: the resources of one worker, a mapping of names to amounts as Ray Train and Ray Tune have it.
        count: number of workers without which the job cannot begin.
    """
    needed = {name: count * amount for name, amount in (each or {}).items()}
    if said := waits(needed, ray.available_resources(), ray.cluster_resources()):
        print(said, flush=True)


def say_if_busy() -> None:
    """Print a line if this machine is busy."""
    if said := busy(os.getloadavg()[0], os.cpu_count() or 1):
        print(said, flush=True)
