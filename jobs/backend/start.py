"""Starts Ray or connects to it.

If that is impossible, a UserError names the environment variable to change; Ray itself would print a traceback, or wait for ever and
ignore SIGTERM.
"""

import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

import grpc
import ray

from igkd.base.errors import INTERRUPTED, STOPPED, UserError
from igkd.base.storage_errors import explain
from jobs.backend.ray_insides import cluster_address, silence_sigterm_warning, take_any_port, token_headers

REACH_S = 8.0
"""Seconds in which the machine that RAY_ADDRESS names must accept a connection."""
CONNECT_S = 20.0
"""Seconds in which Ray must answer there."""
START_S = 180.0
"""Seconds in which a Ray started by us must be ready. Ray itself gives up most failing starts within one minute; on a slow machine a
successful start takes half a minute."""
LEAST_FREE, LEAST_OBJECTS = 32 << 20, 256 << 20
"""Least free bytes for Ray's own files, and for its objects, which are kept in files if shared memory is too small."""
SHARED = "/dev/shm"
LONGEST_SOCKET = 107
"""Most bytes of a Unix socket's path on Linux."""
T = TypeVar("T")


_begun: "Future[None] | None" = None
"""The start of a Ray, or the connection to one; None before `begin`."""


def begin(num_cpus: int | None, environment: dict[str, Any]) -> None:
    """Begin to start a Ray on this machine, in a thread, if RAY_ADDRESS names none; `connect` then waits for it.

    A job calls it when it knows what it will do, so that Ray starts while the job looks at images and networks.

    Raises:
        UserError: Ray cannot be started.
    """
    if (os.environ.get("RAY_ADDRESS") or "local") == "local" and not ray.is_initialized():
        _attempt(num_cpus, environment)


def starting() -> bool:
    """Whether `begin` has begun to start a Ray, for which nobody has waited yet."""
    return _begun is not None


def await_start() -> None:
    """Wait for a Ray that is just starting: if this process ended before, processes would be left behind."""
    begun = _begun
    if begun is not None:
        wait([begun], START_S)


def stop_ray() -> None:
    """End the Ray that this process started, which nothing in it may be using."""
    await_start()
    ray.shutdown()


def connect(num_cpus: int | None, environment: dict[str, Any]) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one of `num_cpus` processors on this machine.

    Args:
        environment: Ray's runtime environment of the job.

    Raises:
        UserError: the cluster cannot be reached, or Ray cannot be started.
    """
    global _begun
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        awaited(_attempt(num_cpus, environment), START_S if address == "local" else REACH_S + CONNECT_S)
    except UserError:
        raise
    except TimeoutError:
        end_at_once(f"error: {reason(address, 'it does not answer')}", 1)
    except Exception as error:
        raise UserError(reason(address, _first_line(error))) from None
    except BaseException:
        end_at_once(STOPPED, INTERRUPTED)
    finally:
        _begun = None
    stop_at_sigterm()


def _attempt(num_cpus: int | None, environment: dict[str, Any]) -> "Future[None]":
    """The future of a `ray.init` in a thread: the one that `begin` began, if there is one."""
    global _begun
    if _begun is not None:
        return _begun
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        check_temporary_directory()
        check_token()
        take_any_port()
    done: Future[None] = Future()
    _begun = done

    def attempt() -> None:
        try:
            if address != "local":
                check_address(address)
            # Ray's dashboard is twelve processes, whose start costs as much as a small job. Nobody is told of it: who wants it asks for it.
            dashboard = os.environ.get("IGKD_DASHBOARD") == "1" if address == "local" else None
            ray.init(
                address=address, num_cpus=num_cpus, logging_level=logging.WARNING, runtime_env=environment, include_dashboard=dashboard
            )
        except BaseException as error:
            done.set_exception(error)
            return
        done.set_result(None)
        threading.Event().wait()  # never end this thread: Linux would then kill the Ray processes that it started

    # Ray may wait in C, where signals do not reach the waiting thread, so it is not started by the main thread.
    silence_sigterm_warning()
    threading.Thread(target=attempt, name="igkd starts Ray", daemon=True).start()
    return done


def awaited(future: "Future[T]", seconds: float = math.inf) -> T:
    """The result of a future, for which a main thread waits so that Ctrl-C and SIGTERM end the wait.

    Linux may hand a signal to any thread of a process, but Python acts on it in the main thread alone, which sleeps until what it waits
    for is there. So the wait is cut into half seconds; into less while Ray starts, which takes SIGTERM from the last part on.

    Raises:
        TimeoutError: it took longer than that.
    """
    end = time.monotonic() + seconds
    while wait([future], timeout=0.02 if starting() else 0.5).not_done:
        stop_at_sigterm()  # again and again, since another thread may start Ray at any time
        if time.monotonic() > end:
            raise TimeoutError
    return future.result()


def stop_at_sigterm() -> None:
    """In the main thread, make SIGTERM stop this process as Ctrl-C does; elsewhere, do nothing.

    Ray, when it starts, installs a handler of its own, in C++, which prints its stack and ends the process.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def end_at_once(sentence: str, status: int) -> None:
    """Print a sentence and end this process at once: `ray.shutdown` would wait for the thread that hangs in Ray."""
    print(sentence, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def reason(address: str, why: str) -> str:
    """The sentence that says why Ray cannot be started, or cannot be reached at an address."""
    if address != "local":
        return (
            f"RAY_ADDRESS={address} names no Ray cluster that can be used ({why}); start that cluster, name another (HOST:PORT, or auto "
            "for the one on this machine), or unset RAY_ADDRESS to have this job start its own"
        )
    variable, directory = temporary_directory()
    return (
        f"Ray cannot start on this machine ({why}); it keeps files in {directory}/ray (choose another directory by {variable}), objects in "
        f"{SHARED}, and its token in $HOME/.ray"
    )


def temporary_directory() -> tuple[str, str]:
    """The environment variable that decides where Ray keeps its files, and that directory."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if variable in os.environ:
            return variable, os.environ[variable]
    return "RAY_TMPDIR", "/tmp"


def check_temporary_directory() -> None:
    """Raise UserError if Ray cannot keep its files and sockets in its directory."""
    variable, directory = temporary_directory()
    name = f"{variable}={directory}" if variable in os.environ else directory
    if not os.path.isabs(directory):
        raise UserError(f"{variable}={directory!r} is not an absolute path, which Ray needs for its files; set it to one, or unset it")
    path = f"{directory}/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        longest = LONGEST_SOCKET - len(os.fsencode(path)) + len(os.fsencode(directory))
        raise UserError(
            f"{name} is too long: Ray makes sockets in it, whose paths may have {LONGEST_SOCKET} bytes; "
            f"set RAY_TMPDIR to a directory of at most {longest} bytes, such as /tmp"
        )
    try:
        os.makedirs(f"{directory}/ray", exist_ok=True)
        with tempfile.TemporaryFile(dir=f"{directory}/ray"):
            free = shutil.disk_usage(directory).free
        shared = shutil.disk_usage(SHARED).free if os.path.isdir(SHARED) else LEAST_OBJECTS
    except OSError as error:
        raise UserError(f"Ray cannot keep its files in {name}: {explain(error)}; set RAY_TMPDIR to one that can be written") from None
    if free < (LEAST_FREE if shared >= LEAST_OBJECTS else LEAST_OBJECTS):
        raise UserError(
            f"{name} has no space for Ray's files: {free >> 20} MiB are left, and {shared >> 20} MiB of shared memory in {SHARED}; "
            "free some, or set RAY_TMPDIR to another directory"
        )


def check_token() -> None:
    """Raise UserError if Ray can neither read its token in the home directory nor write it there."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    home = os.environ.get("HOME")
    if home is None:
        return  # Ray then asks the system for the user's home
    token = Path(home) / ".ray" / "auth_token"
    try:
        if not token.is_absolute():
            raise UserError(f"HOME={home!r} is not an absolute path, under which Ray keeps its token; set it to one")
        if token.is_file() and token.read_bytes().strip():
            return
        token.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=token.parent):
            pass
    except OSError as error:
        raise UserError(f"Ray cannot keep its token in HOME={home}: {explain(error)}; set HOME to one that can be written") from None


def check_address(address: str) -> None:
    """Raise UserError if an address is invalid, or no Ray answers there.

    This uses Python's gRPC, because Ray's own client prints log lines for every attempt and ignores signals.
    """
    try:
        client = address.startswith("ray://")
        resolved = address.removeprefix("ray://") if client else cluster_address(address)
        host, _, port = resolved.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(reason(address, _first_line(error))) from None
    if client:
        return
    with grpc.insecure_channel(resolved, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=REACH_S, metadata=token_headers())
        except grpc.RpcError as error:
            why = {
                grpc.StatusCode.DEADLINE_EXCEEDED: "it does not answer",
                grpc.StatusCode.UNAUTHENTICATED: "it wants its token, in RAY_AUTH_TOKEN or ~/.ray/auth_token, and RAY_AUTH_MODE=token",
            }.get(error.code(), "what answers there is no Ray")
            raise UserError(reason(address, why)) from None


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return explain(error)
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
