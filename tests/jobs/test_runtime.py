"""Starting Ray."""

import os
import subprocess
import sys

import ray

from tests.jobs.conftest import ROOT

PROGRAM = "import ray; from jobs.runtime import start_ray; start_ray(); print(ray.get_runtime_context().gcs_address)"


def address(environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=True
    )
    return done.stdout.strip().splitlines()[-1]


def test_a_job_has_a_ray_of_its_own_unless_it_is_told_of_one(cluster: None) -> None:
    """It would join ours, which runs on this machine, and end when we do."""
    ours = ray.get_runtime_context().gcs_address
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    assert address(alone) != ours
    assert address(alone | {"RAY_ADDRESS": ours}) == ours
