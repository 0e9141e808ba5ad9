"""Starting Ray or connecting to it.

What stands in the way becomes one sentence that names the variable to change: Ray itself answers with a traceback, or waits for ever and
ignores SIGTERM.
"""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import services
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

from igkd.base.errors import INTERRUPTED, STOPPED, UserError
from igkd.base.storage_errors import explain

REACH_S = 8.0
"""Seconds in which the machine that RAY_ADDRESS names must take a connection."""
CONNECT_S = 20.0
"""Seconds in which its Ray must answer."""
START_S = 180.0
"""Seconds in which a Ray of our own must be ready. Ray's own limits end most starts that fail within one minute; a slow machine takes half
of that for one that succeeds."""
LEAST_FREE, LEAST_OBJECTS = 32 << 20, 256 << 20
"""Bytes for what Ray writes before any work begins, and for its objects, which go to its files where shared memory is too small."""
SHARED = "/dev/shm"
LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path on Linux."""


def connect(num_cpus: int | None, environment: dict[str, Any]) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one of `num_cpus` processors on this machine.

    Args:
        environment: Ray's runtime environment of the job.

    Raises:
        UserError: it cannot be reached or started.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        check_temporary_directory()
        check_token()
    done: Future[None] = Future()

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
        threading.Event().wait()  # for ever: Linux kills the processes that Ray started when the thread that started them ends

    # Ray waits in C, where no signal reaches the thread that waits. So that is never our main thread, of which Ray would warn.
    logging.getLogger("ray._private.worker").addFilter(lambda record: "SIGTERM handler is not set" not in record.getMessage())
    threading.Thread(target=attempt, name="igkd starts Ray", daemon=True).start()
    try:
        done.result(START_S if address == "local" else REACH_S + CONNECT_S)
    except UserError:
        raise
    except TimeoutError:
        _leave(f"error: {reason(address, 'it does not answer')}", 1)
    except Exception as error:
        raise UserError(reason(address, _first_line(error))) from None
    except BaseException:
        _leave(STOPPED, INTERRUPTED)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does where it is started by the main thread


def _leave(sentence: str, status: int) -> None:
    """End this process though a thread of it hangs in Ray, for which `ray.shutdown` would wait."""
    print(sentence, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def reason(address: str, why: str) -> str:
    """The sentence for a Ray that cannot be started, or reached at an address."""
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
    """Where Ray keeps its files: the variable that says so, and the directory."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if variable in os.environ:
            return variable, os.environ[variable]
    return "RAY_TMPDIR", "/tmp"


def check_temporary_directory() -> None:
    """Refuse a directory that Ray cannot keep its files and sockets in; raises UserError."""
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
    """Refuse a home that Ray can neither read its token in nor write it to; raises UserError."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    home = os.environ.get("HOME")
    if home is None:
        return  # Ray asks the system for the user's
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
    """Refuse an address that is none, or where no Ray answers; raises UserError.

    Asked by Python's gRPC: Ray's own client prints what its C++ thinks of every try, and does not end for a signal.
    """
    try:
        client = address.startswith("ray://")
        resolved = address.removeprefix("ray://") if client else services.canonicalize_bootstrap_address(address) or ""
        host, _, port = resolved.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(reason(address, _first_line(error))) from None
    if client:
        return
    with grpc.insecure_channel(resolved, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            token = [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=REACH_S, metadata=token)
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
