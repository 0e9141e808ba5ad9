"""One real Ray on this machine for all tests of the jobs, and the toy run they look at."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import pytest

from igkd.config.precompute import PrecomputeConfig
from tests.helpers.paths import IMAGES
from tests.helpers.programs import run_program
from tests.helpers.stores import make_store


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Two processors, as on a small laptop."""
    import ray

    from jobs.backend.runtime import start_ray

    start_ray(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture
def own_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory for a test's own cluster: it leaves its address in /tmp/ray, where every other program that starts Ray would join it."""
    import ray

    ray.shutdown()
    with tempfile.TemporaryDirectory(prefix="igkd", ignore_cleanup_errors=True) as directory:  # short: sockets are made in it
        monkeypatch.setenv("RAY_TMPDIR", directory)
        yield


@pytest.fixture
def run_job() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m jobs.NAME ARGS` as a user would, on the tests' Ray where there is one; gives exit status and output."""
    import ray

    def run(job: str, *args: str) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ)
        if ray.is_initialized():
            environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        return run_program(f"jobs.{job}", list(args), environment)

    return run


@pytest.fixture(scope="session")
def toy_store(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished store of 100 images."""
    store = str(tmp_path_factory.mktemp("toy") / "store")
    make_store(PrecomputeConfig(images=IMAGES, teacher=teacher, store=store, steps=2, engine="captum", rows_per_file=50))
    return store
