"""A job on the Ray that RAY_ADDRESS names, or on one of its own: prints where that is, and computes stores.

A program for tests: python -m tests.helpers.on_ray CPUS [CONFIG...]

CPUS is 0 for what is there; CONFIG is a configuration of jobs.precompute as JSON.
"""

import json
import sys

import ray

from igkd.config.precompute import PrecomputeConfig
from jobs.backend.runtime import run_job, start_ray
from jobs.precompute import precompute_store


def main() -> None:
    cpus, *configs = sys.argv[1:]
    start_ray(num_cpus=int(cpus) or None)
    print(ray.get_runtime_context().gcs_address, flush=True)
    for one in configs:
        precompute_store(PrecomputeConfig(**json.loads(one)))


if __name__ == "__main__":
    run_job(main)
