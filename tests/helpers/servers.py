"""Ports of servers that tests start."""

import socket
import subprocess
import time
from typing import Any

import jobs  # noqa: F401  # sets what Ray reads when it is imported, by whichever test is the first to do so


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_port(server: "subprocess.Popen[Any]", port: int) -> None:
    """Return when a server that is starting takes connections, or after a minute."""
    for _ in range(600):
        assert server.poll() is None, "the server did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 0.1).close()
            return
        except OSError:
            time.sleep(0.1)
