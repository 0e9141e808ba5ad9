"""What we change of Ray 2.60 is still needed: each test fails when Ray does by itself what jobs/backend/ray_insides.py makes it do."""

import inspect
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray._private.state
import ray._private.worker
import ray.data
import ray.train
from ray.data.exceptions import ExecutionTimeoutError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from jobs.backend.ray_insides import lean_trainer, silence_ray_data, silence_ray_tune
from tests.helpers.paths import ROOT


def test_workers_of_a_ray_of_ours_have_their_drivers_priority(cluster: None) -> None:
    """Ray gives its workers niceness 15 unless told otherwise."""
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
    assert os.environ["RAY_worker_niceness"] == "0"  # noqa: SIM112  # as Ray spells it


def test_lines_of_workers_have_no_prefix(cluster: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Ray prints "(work pid=123)" before them, in colours."""
    ray.get(ray.remote(lambda: print("a line of ours", flush=True)).remote())
    said, until = "", time.monotonic() + 20
    while "a line of ours" not in said and time.monotonic() < until:
        time.sleep(0.2)
        said += capfd.readouterr().out
    assert "a line of ours" in said.splitlines() and "pid=" not in said


def test_lines_of_workers_that_differ_only_in_numbers_are_all_printed(cluster: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Ray prints the first, and later that it was "repeated 3x across cluster"."""
    say = ray.remote(lambda n: (time.sleep(1), print(f"part {n} of ours", flush=True)))
    ray.get([say.options(num_cpus=0).remote(n) for n in range(4)])
    said, until = "", time.monotonic() + 20
    while said.count(" of ours") < 4 and time.monotonic() < until:
        time.sleep(0.2)
        said += capfd.readouterr().out
    assert {f"part {n} of ours" for n in range(4)} <= set(said.splitlines()) and "repeated" not in said


DRIVER = """
import sys
import jobs
from jobs.backend.runtime import start_ray
start_ray()
import ray
ray.get(ray.remote(lambda: print("a line of ours", flush=True)).remote())
sys.stdin.read()
"""


def test_lines_of_workers_reach_a_pipe_before_the_job_ends(cluster: None) -> None:
    """Python keeps what is printed into a pipe or a file until there are some kilobytes, and Ray leaves it at that."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "RAY_FLUSH_DRIVER_LOGS")}
    environment |= {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], cwd=ROOT, env=environment, **pipes)
    try:
        assert driver.stdout is not None and select.select([driver.stdout], [], [], 120)[0], "nothing was printed while it ran"
        assert driver.stdout.readline() == b"a line of ours\n" and driver.poll() is None
    finally:
        driver.kill()
        driver.communicate()


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "submitted",
    [
        {"env_vars": {"IGKD_MODULES": "nets:small", "PYTHONPATH": "nowhere"}},
        # What Ray adds to env_vars of a job whose submitter names a hook.
        {"env_vars": {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "os.getpid"}, "worker_process_setup_hook": "os.getpid"},
    ],
)
def test_a_submitted_job_may_bring_its_own_runtime_environment(submitted: dict[str, Any]) -> None:
    """Ray refuses a job whose driver sets what its submitter has set. `ray job submit` hands that to the driver in this variable."""
    environment = os.environ | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": submitted, "metadata": {}})}
    environment |= {name: value for name, value in submitted["env_vars"].items() if not name.startswith("__")}
    environment.pop("RAY_OVERRIDE_JOB_RUNTIME_ENV", None)
    program = [sys.executable, "-m", "tests.helpers.on_ray", "1"]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_tune_would_hand_the_drivers_aws_keys_to_its_runs() -> None:
    program = "import jobs; from ray.tune.execution import class_cache; print(*class_cache.ENV_VARS_TO_PROPAGATE)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "AWS_SECRET_ACCESS_KEY" in done.stdout


def test_ray_would_report_its_use_watch_for_preemption_print_tables_and_log_at_length() -> None:
    """Ray's own defaults, in a process in which this package sets nothing."""
    program = """
import logging, ray, ray.data, ray.tune
from ray._common.usage.usage_lib import usage_stats_enabled
from ray.train.v2._internal.constants import DEFAULT_ENABLE_PREEMPTION_WATCHER
from ray.tune.experimental.output import get_air_verbosity
print(usage_stats_enabled(), DEFAULT_ENABLE_PREEMPTION_WATCHER, get_air_verbosity(1) is not None)
print(*(logging.getLogger(name).isEnabledFor(logging.INFO) for name in ("ray.data", "ray.tune")))
"""
    ours = ("RAY_USAGE_STATS_ENABLED", "RAY_AIR_NEW_OUTPUT", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["True"] * 5
    quiet = {name: os.environ[name] for name in ours}
    assert set(quiet.values()) == {"0"}


def test_our_settings_keep_ray_quiet() -> None:
    silence_ray_data()
    silence_ray_tune()
    assert not logging.getLogger("ray.data").isEnabledFor(logging.WARNING) and logging.getLogger("ray.data").isEnabledFor(logging.ERROR)
    assert not logging.getLogger("ray.tune").isEnabledFor(logging.ERROR)


def test_ray_data_would_refuse_a_whole_block_on_a_gpu(cluster: None) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        ray.data.range(1).map_batches(lambda batch: batch, batch_size=None, num_gpus=1)


def test_ray_data_would_end_what_is_only_slow(cluster: None) -> None:
    """A part of which no block is finished for half an hour is no error: found with a teacher's maps beside other work on two cores."""
    from jobs.backend.runtime import set_up_ray_data

    def slow(row: dict[str, Any]) -> dict[str, Any]:
        time.sleep(6)
        return row

    context = ray.data.DataContext.get_current()
    usual = ray.data.DataContext().execution_no_progress_timeout_s
    try:
        context.execution_no_progress_timeout_s = 2
        with pytest.raises(ExecutionTimeoutError):
            ray.data.range(1).map(slow).take_all()
        set_up_ray_data()
        assert context.execution_no_progress_timeout_s < 0 < usual
        assert ray.data.range(1).map(slow).take_all() == [{"id": 0}]
    finally:
        set_up_ray_data()


def test_ray_would_warn_that_it_sets_no_signal_handler() -> None:
    assert "SIGTERM handler is not set" in inspect.getsource(ray._private.worker)


PORTS = """
from ray._private.parameter import RayParams
from jobs.backend.ray_insides import take_any_port
print(RayParams().dashboard_agent_listen_port)
take_any_port()
print(RayParams().dashboard_agent_listen_port, RayParams(dashboard_agent_listen_port=7).dashboard_agent_listen_port)
"""


def test_the_agents_of_two_rays_would_want_one_port() -> None:
    done = subprocess.run([sys.executable, "-c", PORTS], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["52365", "0", "7"]


def test_ray_train_would_start_a_cleaner() -> None:
    def cleans(trainer: type[TorchTrainer]) -> bool:
        made = trainer(lambda: None)._create_default_callbacks()
        return any(isinstance(one, PlacementGroupCleanerCallback) for one in made)

    assert cleans(TorchTrainer) and not cleans(lean_trainer())


def test_ray_train_would_start_actors_beside_its_workers(cluster: None, tmp_path: Path) -> None:
    """One for its controller and one that divides the cluster; each is a process that has to import Ray Train."""

    def started(trainer: type[TorchTrainer]) -> set[str]:
        before = set(ray._private.state.actors())
        made = trainer(report, scaling_config=ScalingConfig(num_workers=1), run_config=RunConfig(storage_path=str(tmp_path)))
        assert made.fit().error is None
        return {name for key, one in ray._private.state.actors().items() if key not in before if (name := one["ActorClassName"])}

    ours, theirs = started(lean_trainer()), started(TorchTrainer)
    assert ours == {"RayTrainWorker", "SynchronizationActor"}
    assert "TrainController" in theirs
    assert "_AutoscalingCoordinatorActor" in {one["ActorClassName"] for one in ray._private.state.actors().values()}


KILLED_AS_IT_WRITES = """
import resource, signal, sys
from types import SimpleNamespace
from pyarrow.fs import LocalFileSystem
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from jobs.backend import ray_insides

if sys.argv[2] == "ours":
    ray_insides._write_snapshots_whole()
class Manager(CheckpointManager):
    def __init__(self):
        self._storage_context = SimpleNamespace(checkpoint_manager_snapshot_path=sys.argv[1], storage_filesystem=LocalFileSystem())
    def _save_state(self):
        return self.text
manager = Manager()
manager.text = "the epoch before"
manager._write_state_to_storage()
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # the kernel kills this process when it writes the 4,097th byte
manager.text = "the epoch after" * 1000
manager._write_state_to_storage()
"""


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_ray_train_would_leave_half_a_list_of_checkpoints(tmp_path: Path, whose: str) -> None:
    listed = tmp_path / "checkpoint_manager_snapshot.json"
    done = subprocess.run([sys.executable, "-c", KILLED_AS_IT_WRITES, str(listed), whose], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert (listed.read_text() == "the epoch before") == (whose == "ours")


def report() -> None:
    """A training of one line."""
    ray.train.report({"a": 1})
