"""What we change of Ray 2.60 is still needed: each test fails when Ray does by itself what jobs/backend/ray_insides.py makes it do."""

import inspect
import os
import signal
import subprocess
import sys
import time

import pytest
import ray
import ray._private.worker
import ray.data
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from jobs.backend.ray_insides import lean_trainer


def test_workers_of_a_ray_of_ours_have_their_drivers_priority(cluster: None) -> None:
    """Ray gives its workers niceness 15 unless told otherwise."""
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
    assert os.environ["RAY_worker_niceness"] == "0"  # noqa: SIM112  # as Ray spells it


def test_a_worker_that_ray_ends_prints_no_traceback(cluster: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Ray ends workers with SIGTERM, at which they raise SystemExit wherever they are: here in a finalizer, where Python prints it."""

    class Ended:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # the handler runs here

    @ray.remote(max_retries=0)
    def work() -> None:
        print("before", file=sys.stderr, flush=True)
        Ended()
        print("after", file=sys.stderr, flush=True)

    ray.get(work.remote())
    said = ""
    until = time.monotonic() + 20
    while "before" not in said and time.monotonic() < until:
        time.sleep(0.5)  # Ray's driver prints what workers say a little later
        said += capfd.readouterr().err
    time.sleep(1)
    said += capfd.readouterr().err
    assert "before" in said and "after" not in said and "SystemExit" not in said


def test_tune_would_hand_the_drivers_aws_keys_to_its_runs() -> None:
    program = "import jobs; from ray.tune.execution import class_cache; print(*class_cache.ENV_VARS_TO_PROPAGATE)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "AWS_SECRET_ACCESS_KEY" in done.stdout


def test_ray_data_would_refuse_a_whole_block_on_a_gpu(cluster: None) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        ray.data.range(1).map_batches(lambda batch: batch, batch_size=None, num_gpus=1)


def test_ray_would_warn_that_it_sets_no_signal_handler() -> None:
    assert "SIGTERM handler is not set" in inspect.getsource(ray._private.worker)


def test_ray_train_would_start_a_cleaner() -> None:
    def cleans(trainer: type[TorchTrainer]) -> bool:
        made = trainer(lambda: None)._create_default_callbacks()
        return any(isinstance(one, PlacementGroupCleanerCallback) for one in made)

    assert cleans(TorchTrainer) and not cleans(lean_trainer())
