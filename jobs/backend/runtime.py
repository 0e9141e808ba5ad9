"""What all jobs use: starting Ray, running a training loop on it, and turning its errors into sentences."""

import atexit
import contextlib
import functools
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.data
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.config import LoggingConfig

from igkd.base.errors import INTERRUPTED, STOPPED, TIME_IS_UP, UserError, run_cli
from igkd.networks import module
from jobs.backend.ray_insides import lean_trainer, quiet_workers, silence_ray_data
from jobs.backend.sentences import Final, user_error
from jobs.backend.start import await_start, awaited, begin, connect, starting, stop_at_sigterm, stop_ray
from jobs.backend.waiting import say_if_waiting

WORKER_ENVIRONMENT = {
    # glibc gives large blocks back to the kernel at once and page-faults them in again at every step; keeping them is 1.3x faster here.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    # Ray Train's own `print` says every line twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
READ_CPUS = 0.2
"""Processors of a Ray Data task that mostly waits for a disk or a network."""
T = TypeVar("T")


def run_job(main: Callable[[], int | None]) -> None:
    """Run a job's main function as a program; errors of Ray that wrap a UserError become its sentence."""

    def unwrapped() -> int | None:
        try:
            return main()
        except Exception as error:
            cause = user_error(error)
            if cause is None:
                raise
            raise cause from None

    stop_at_sigterm()
    try:
        run_cli(unwrapped)
    except SystemExit as end:
        stop_ray()  # now that the error is printed: a Ray that is just starting takes seconds
        if not isinstance(end.code, int):
            raise
        leave(end.code)


def leave(status: int) -> None:
    """End this process at once, after what was registered with `atexit`.

    Python would first destroy all modules one by one; with torch and Ray among them, the prompt came back some 10 s after the last line.
    """
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def start_ray(num_cpus: int | None = None) -> None:
    """Connect to the cluster that RAY_ADDRESS names, as it does for submitted jobs, or start one of all processors or `num_cpus`.

    Without an address Ray would join the cluster that was started last on this machine. It may belong to another job, and end with it, or
    to another user.

    Raises:
        UserError: that cluster cannot be reached, or none can be started.
    """
    set_up_ray_data()
    if starting() or not ray.is_initialized():
        connect(num_cpus, environment())


def begin_ray(out: str | None = None) -> None:
    """Begin to start the Ray that `start_ray` will wait for, while a job looks at its images and networks.

    Args:
        out: a directory whose result.json says that there is nothing to do, and nothing to start.
    """
    if out is None or not (Path(out) / "result.json").exists():
        begin(None, environment())


def environment() -> dict[str, Any]:
    """The runtime environment of our jobs' tasks and actors."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return {"env_vars": {**WORKER_ENVIRONMENT, **module.environment(), "PYTHONPATH": path}} | quiet_workers()


@functools.lru_cache(maxsize=4)
def fetched(ref: ray.ObjectRef[T]) -> T:
    """An object that the driver put into Ray's store, unpacked once in each worker process: a source may hold the names of a million files.

    It is defined here because Ray sends what is defined in a program's own module, `__main__`, by value, and caches cannot be sent.
    """
    return ray.get(ref)


def set_up_ray_data() -> None:
    """Set Ray Data's options for the data sets of this process: a UserError stays one, no bars are shown, and tasks may be slow.

    Ray Data's bars need a terminal and count blocks; our lines count images and can be read in a log, too.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []
    context.raise_original_map_exception = True
    # Ray Data would give up when no block was finished for half an hour. A part of large pictures takes a slow processor longer than
    # that, and a cluster may need as long for a node.
    context.execution_no_progress_timeout_s = -1
    silence_ray_data()


def scaling(workers: int, reads: bool = False, least: int | None = None) -> ScalingConfig:
    """Divide the cluster among the workers of a run; they train on GPUs if there are any.

    Args:
        reads: leave a quarter of the processors to the tasks that read data for the workers, which would otherwise wait for ever.
        least: smallest number of elastic workers. These have one GPU or processor each, since it is not known how many there will be.
    """
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0)
    if least is not None:
        each = {"GPU": 1.0, "CPU": 1.0} if gpus else {"CPU": 1.0}
        return ScalingConfig(num_workers=(least, workers), use_gpu=bool(gpus), resources_per_worker=each)  # type: ignore[arg-type]  # of Train V1
    if gpus:
        share = gpus / workers
        return ScalingConfig(num_workers=workers, use_gpu=True, resources_per_worker={"GPU": 1 if share >= 1 else share, "CPU": 1})
    node = max(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"])
    share = min(node, resources.get("CPU", 1) / workers) * (0.75 if reads else 1)
    return ScalingConfig(num_workers=workers, resources_per_worker={"CPU": math.floor(share) if share >= 1 else share})


def fit(
    loop: Callable[[dict[str, Any]], None],
    loop_config: dict[str, Any],
    out: Path,
    workers: int,
    stream: Callable[[], Any] | None = None,
    least: int | None = None,
) -> Path:
    """Run a training loop to its end, going on from the last checkpoint under `out`; workers that die are restarted twice.

    A UserError in a worker, under `one_sentence`, is raised here at once.

    Args:
        stream: makes the Ray Dataset "train" of which every worker gets an equal share.
        least: elastic workers, so many of them at least.

    Returns:
        the directory of the last checkpoint.
    """
    if workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}")
    if least is not None and not 1 <= least <= workers:
        raise UserError(f"--min-workers must be at least 1 and at most --workers, {workers}, not {least}")
    start_ray()
    shares = scaling(workers, reads=stream is not None, least=least)
    say_if_waiting(shares.resources_per_worker, least or workers)
    trainer = lean_trainer()(
        functools.partial(loop, loop_config),  # as `train_loop_config` Train's controller would unpack it, and import all of igkd and torch
        scaling_config=shares,
        datasets={"train": stream()} if stream is not None else None,
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(out.resolve()),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=2),
            callbacks=[Final()],  # type: ignore[list-item]  # mypy sees the class of Train V1
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # likewise
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        cause = user_error(error)
        if cause is None:
            raise
        raise cause from None
    if result.checkpoint is None:
        raise UserError(f"the run under {out} ended without a checkpoint; its log is above")
    return Path(result.checkpoint.path)


@contextlib.contextmanager
def stopping_after(seconds: float | None) -> Iterator[None]:
    """Stop this process as Ctrl-C does, but with a sentence that the time is up, if the block takes longer than that.

    In a block that `in_thread` runs, the process ends at once, with status 0; elsewhere KeyboardInterrupt is raised in the main thread.
    """
    if seconds is None:
        yield
        return

    def stop() -> None:
        TIME_WAS_UP.set()
        print(TIME_IS_UP, flush=True)
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(max(1.0, seconds), stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


TIME_WAS_UP = threading.Event()


def in_thread(task: Callable[[], T]) -> T:
    """Run a function that calls `fit` in a thread, and give its result.

    There Ray Train leaves Ctrl-C to us. It ends this process at once, and what it started with it, as a `kill -9` would, which costs
    nothing that was reported: Ray stopped under the thread that waits for it may end the process itself, with a status of its own.
    """
    pool = ThreadPoolExecutor(1)
    future = pool.submit(task)
    try:
        return awaited(future)
    except KeyboardInterrupt:
        if TIME_WAS_UP.is_set():
            os._exit(0)
        print(STOPPED, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        await_start()
        os._exit(INTERRUPTED)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
