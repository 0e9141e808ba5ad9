"""What we change of Ray, or use of its insides: for Ray 2.60, and nowhere else but here and in `jobs.backend.spot`.

Each item says why. Its test in tests/jobs/backend/test_ray_insides.py shows that Ray without it still does what is not wanted; when that
test fails with a newer Ray, the item can go. Importing this module imports nothing of Ray.
"""

import asyncio
import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igkd.base.errors import UserError
from igkd.base.storage import write_bytes

if TYPE_CHECKING:
    import ray.data
    from ray.train.torch import TorchTrainer


def set_environment() -> None:
    """Set variables of Ray's that are not set. `jobs` does it before anything imports ray, which reads RAY_AUTH_MODE at once."""
    settings = {
        # Ray reports its use to its makers unless told not to.
        "RAY_USAGE_STATS_ENABLED": "0",
        # Tune's tables say in many words what `jobs.backend.sweep_progress.Keeper` says in few.
        "RAY_AIR_NEW_OUTPUT": "0",
        # Ray refuses a job whose driver and submitter set the same variable, such as PYTHONPATH. Ours have what the submitter gave in them.
        "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
        # Ray Train's watcher of preempted nodes only tells training loops that ask, which ours do not, and prints an error at each start.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # How often Ray Train looks at its workers: a checkpoint is safe, and a run over, when it has looked. Its own 2 s cost a short run
        # as much as its steps.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        # Ray would put "(RayTrainWorker pid=...)" in colours before each line of a worker, also in a file.
        "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
        # Ray would hold back lines of workers that differ only in their numbers, and add in colours how many there were.
        "RAY_DEDUP_LOGS": "0",
        # Where output goes to a file or a pipe, Ray would keep such lines for minutes, until there are some kilobytes.
        "RAY_FLUSH_DRIVER_LOGS": "1",
    }
    if os.environ.get("RAY_ADDRESS", "local") in ("", "local"):  # a Ray of our own; a cluster that we are told of has its own way
        # It listens beyond loopback, and without a token takes work from anybody. Ray makes the token, in ~/.ray.
        settings["RAY_AUTH_MODE"] = "token"
        # Ray gives its workers the low priority 15: beside two busy loops on two processors, a training then hardly gets on.
        settings["RAY_worker_niceness"] = "0"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def silence_ray_data() -> None:
    """Keep Ray Data's log off the terminal, errors excepted. It has some lines for each data set; ours count images."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def silence_ray_tune() -> None:
    """Keep Tune's log off the terminal. It has a traceback for each failed run, of which `Keeper` prints a sentence; files have it all."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def silence_sigterm_warning() -> None:
    """Hide a warning of `ray.init` that it sets no signal handler where the main thread does not call it: `jobs.backend.start` sets one."""
    logging.getLogger("ray._private.worker").addFilter(_not_about_sigterm)


def _not_about_sigterm(record: logging.LogRecord) -> bool:
    return "SIGTERM handler is not set" not in record.getMessage()


@functools.cache  # once in a process
def take_any_port() -> None:
    """Let the agent of a Ray that this process starts listen on a free port instead of 52365, which another Ray on this machine may have.

    It would try that one for more than three seconds, in which nothing else happens, and then give up with a traceback in its log.
    """
    from ray._private.parameter import RayParams

    RayParams.__init__ = functools.partialmethod(RayParams.__init__, dashboard_agent_listen_port=0)  # type: ignore[assignment, method-assign]


def quiet_workers() -> dict[str, str]:
    """The entry of Ray's runtime environment that makes each worker process call `quiet_at_sigterm` before its first task.

    It is empty for a job that was submitted with a setup hook of its own, since Ray takes only one.
    """
    hook, submitted = "worker_process_setup_hook", os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    return {} if hook in submitted else {hook: "jobs.backend.ray_insides.quiet_at_sigterm"}


def quiet_at_sigterm() -> None:
    """Make this worker process say nothing more on stderr once Ray ends it with SIGTERM.

    Ray's handler raises SystemExit wherever Python happens to be. In a finalizer Python prints that as an "Exception ignored" with a
    traceback, which would reach the user's terminal although nothing went wrong.
    """
    from ray._private import utils

    set_handler = utils.set_sigterm_handler

    def set_quiet_handler(handler: Callable[[int, Any], None]) -> None:
        def quiet(number: int, frame: Any) -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
            handler(number, frame)

        set_handler(quiet)

    utils.set_sigterm_handler = set_quiet_handler  # the worker sets its handler next


def keep_aws_keys_from_tune() -> None:
    """Keep Tune from handing the driver's AWS keys to its runs in a runtime environment, which Ray writes to its log.

    The runs have the keys of their node.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE.difference_update({name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")})


def lean_trainer() -> "type[TorchTrainer]":
    """Ray Train's trainer without four of its helper processes, each of which costs a start of seconds on a small machine.

    Its controller, the loop that watches the workers, runs in the process that calls `fit`: our jobs end, and are begun again, with it. As
    an actor it imports Ray Train and torch once more, in each run of a sweep. PlacementGroupCleaner frees the processors of a training
    whose controller died while its driver lives. It asks Ray's dashboard every second; beside another Ray it asked that one's, printed a
    traceback, or took a run of ours for dead and removed its workers. AutoscalingCoordinator divides a cluster among a training and its
    data sets; a training without them asks for its processors by its placement group, which the cluster's autoscaler sees as well. And
    DatasetsCallback has nothing to do where there is no data set.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class ByPlacementGroup(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None: ...

        def _maybe_send_resource_request(self) -> None: ...

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            unwanted = (PlacementGroupCleanerCallback,) if self.datasets else (PlacementGroupCleanerCallback, DatasetsCallback)
            return [one for one in super()._create_default_callbacks() if not isinstance(one, unwanted)]  # type: ignore[misc]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            _need_no_controller_actor()
            _write_snapshots_whole()
            if type(settings["scaling_policy"]) is FixedScalingPolicy and not self.datasets:
                settings["scaling_policy"] = ByPlacementGroup(self.scaling_config)  # type: ignore[arg-type]  # of Train V1
            try:
                controller = TrainController(**settings)
            except CheckpointManagerInitializationError:
                listed = f"{settings['train_run_context'].run_config.storage_path}/checkpoints"
                advice = "restore it from a copy, or delete that directory to train from the beginning"
                raise UserError(f"{listed}: its list of checkpoints cannot be read; {advice}") from None
            asyncio.run(controller.run())
            return controller.get_result()

    return LeanTrainer


@functools.cache  # once in a process
def _need_no_controller_actor() -> None:
    """Let a process that is no actor give None as its actor, instead of an error.

    Workers get the controller's actor for `ray.train.get_all_reported_checkpoints`, which ours do not call.
    """
    from ray.runtime_context import RuntimeContext

    theirs = RuntimeContext.current_actor.fget  # type: ignore[attr-defined]  # mypy does not see the property

    def current_actor(self: RuntimeContext) -> Any:
        try:
            return theirs(self)
        except RuntimeError:
            return None

    RuntimeContext.current_actor = property(current_actor)  # type: ignore[method-assign, assignment]


@functools.cache  # once in a process
def _write_snapshots_whole() -> None:
    """Let the list of a run's checkpoints be replaced in one step.

    Ray empties the file first: a driver killed then leaves a list that cannot be read, and the run could not go on.
    """
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager

    def write(self: CheckpointManager) -> None:
        write_bytes(Path(self._storage_context.checkpoint_manager_snapshot_path), self._save_state().encode())  # runs are in directories

    CheckpointManager._write_state_to_storage = write  # type: ignore[method-assign]


def map_blocks(dataset: "ray.data.Dataset", function: Callable[[Any], Any], **resources: Any) -> "ray.data.Dataset":
    """Apply a function to each block of a data set, as a dictionary of numpy arrays; it gives one of the block's successor.

    `Dataset.map_batches(batch_size=None)`, which refuses functions on GPUs: they are to say how many rows fit into a GPU's memory. Ours
    take a whole part and divide it themselves.

    Args:
        resources: what a task takes, as `Dataset.map_batches` has it.
    """
    return dataset.map_batches_internal(function, batch_size=None, batch_format="numpy", **resources)


def cluster_address(address: str) -> str:
    """HOST:PORT of the Ray that an address names, such as "auto"; "" if there is none."""
    from ray._private import services

    return services.canonicalize_bootstrap_address(address) or ""


def token_headers() -> list[tuple[str, str]]:
    """What a gRPC call to Ray has to carry where it wants a token."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    return [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
