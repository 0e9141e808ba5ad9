"""One real Ray on this machine for all tests of the jobs, and the toy run they look at."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from igkd.config.precompute import PrecomputeConfig
from tests.helpers.paths import IMAGES
from tests.helpers.precomputing import configure
from tests.helpers.programs import run_program
from tests.helpers.stores import make_store


@pytest.fixture(scope="session", autouse=True)
def directory_of_this_process() -> Iterator[None]:
    """Tests run in several processes; each keeps its Rays in a directory of its own, where programs of the others do not find them."""
    import ray

    with pytest.MonkeyPatch.context() as patch, temporary_directory(os.environ.get("RAY_TMPDIR")) as directory:
        patch.setenv("RAY_TMPDIR", directory)
        yield
        ray.shutdown()


def temporary_directory(parent: str | None = None) -> "tempfile.TemporaryDirectory[str]":
    """A directory with a short name, since Ray makes sockets in it."""
    return tempfile.TemporaryDirectory(prefix="ig", dir=parent or "/tmp", ignore_cleanup_errors=True)


@pytest.fixture(scope="module")
def cluster() -> None:
    """One Ray of two processors, as on a small laptop, for all tests that do not kill it."""
    from jobs.backend.runtime import start_ray

    start_ray(num_cpus=2)


@pytest.fixture
def own_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory for a test's own cluster, whose address is left there, where every other program that starts Ray would join it."""
    import ray

    ray.shutdown()
    with temporary_directory() as directory:
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


@pytest.fixture(scope="module")
def store(cluster: None, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of 40 images, made through Ray."""
    from jobs.precompute import precompute_store

    path = tmp_path_factory.mktemp("precompute") / "store"
    precompute_store(configure(teacher, path, limit=40))
    return path
