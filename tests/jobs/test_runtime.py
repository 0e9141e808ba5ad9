"""Starting Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from tests.jobs.conftest import ROOT

PROGRAM = "from jobs.runtime import start_ray; import ray; start_ray(); print(ray.get_runtime_context().gcs_address)"


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


STRANGER = """
import os, subprocess, sys
from jobs.runtime import start_ray
import ray

start_ray()
join = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False); print('joined', len(ray.nodes()))"
for mode in ("token", "disabled"):
    tried = subprocess.run([sys.executable, "-c", join], env=os.environ | {"RAY_AUTH_MODE": mode}, capture_output=True, text=True)
    print(mode, tried.returncode == 0 and "joined 1" in tried.stdout)
"""


@pytest.mark.slow
def test_it_takes_no_work_from_whoever_has_no_token(tmp_path: Path) -> None:
    """In a home where Ray has never been: the token is made. Ray's ports are open to the network, dashboard aside."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", STRANGER]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["token", "True", "disabled", "False"], done.stderr
    assert len((tmp_path / ".ray" / "auth_token").read_text()) >= 32
    assert "authentication is disabled" not in done.stderr
