"""Ask an autoscaling cluster for nodes, wait for them, then run a job: python -m jobs.nodes --gpus 4 -- python -m jobs.tune ...

A job divides among its workers what the cluster has when the job begins. A cluster that has scaled down to nothing then has no GPUs.
"""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import ray
import tyro
from ray.autoscaler.sdk import request_resources

from igkd.base.errors import UserError
from jobs.backend.runtime import run_job, start_ray

LOOK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class NodesConfig:
    """Wait until the cluster has these resources, then run the command after `--`.

    The request to the autoscaler is withdrawn before the command runs: idle nodes stay for some minutes, and a job starts in seconds."""

    gpus: int = 0
    """GPUs to wait for, in all of the cluster."""
    cpus: int = 0
    """Processors to wait for, likewise."""
    minutes: float = 20.0
    """Longest wait. After it, go on with what is there; fail if there is no GPU (or processor) at all of those asked for."""

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.cpus < 0 or self.gpus + self.cpus == 0:
            raise UserError(f"--gpus {self.gpus} --cpus {self.cpus} asks for nothing")
        if self.minutes <= 0:
            raise UserError(f"--minutes must be above 0, not {self.minutes}")

    def bundles(self) -> list[dict[str, int]]:
        return [{"GPU": 1}] * self.gpus + [{"CPU": 1}] * self.cpus

    def met(self, there: Mapping[str, float]) -> bool:
        return there.get("GPU", 0) >= self.gpus and there.get("CPU", 0) >= self.cpus

    def better_than_nothing(self, there: Mapping[str, float]) -> bool:
        return (not self.gpus or there.get("GPU", 0) >= 1) and (not self.cpus or there.get("CPU", 0) >= 1)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Divide the command line into the flags of this program and the command after `--`."""
    if "--" not in arguments:
        return arguments, []
    where = arguments.index("--")
    return arguments[:where], arguments[where + 1 :]


def wait_for_nodes(config: NodesConfig) -> None:
    """Return when the cluster has the resources.

    Raises:
        UserError: the time is up, and none of what was asked for is there.
    """
    deadline, said = time.monotonic() + config.minutes * 60, ""
    request_resources(bundles=config.bundles())
    try:
        while not config.met(there := ray.cluster_resources()):
            line = f"nodes: {there.get('GPU', 0):.0f} of {config.gpus} GPUs, {there.get('CPU', 0):.0f} processors (asked for {config.cpus})"
            if line != said:
                print(said := line, flush=True)
            if time.monotonic() >= deadline:
                if config.better_than_nothing(there):
                    return
                raise UserError(f"no nodes after {config.minutes:g} minutes; `ray status` on the head says why")
            time.sleep(LOOK_S)
    finally:
        request_resources(bundles=[])  # the request would outlive this process, and keep the nodes for ever


def main() -> None:
    own, command = split(sys.argv[1:])
    config = tyro.cli(NodesConfig, prog="python -m jobs.nodes", args=own)
    if not command:
        raise UserError("there is no command; put it after --")
    start_ray()
    wait_for_nodes(config)
    ray.shutdown()
    os.execvp(command[0], command)


if __name__ == "__main__":
    run_job(main)
