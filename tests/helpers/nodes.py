"""A cluster of several nodes on this machine."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

MEMORY = 100 << 20


class Nodes:
    """A head that computes nothing, and the nodes that are added to it."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self._start(0, include_dashboard=False)
        self.nodes: list[Any] = []

    def _start(self, num_cpus: int, **settings: Any) -> Any:
        """A node; Ray gives a node half a minute to start, which a machine that does other things, too, may not keep."""
        for _ in range(4):
            with suppress(Exception):
                return self.cluster.add_node(num_cpus=num_cpus, object_store_memory=MEMORY, **settings)
        return self.cluster.add_node(num_cpus=num_cpus, object_store_memory=MEMORY, **settings)

    def add(self, num_cpus: int, **settings: Any) -> str:
        """Start a node; gives its id. In the main thread: Ray sets signal handlers."""
        self.nodes.append(self._start(num_cpus, **settings))
        return str(self.nodes[-1].node_id)

    def remove(self, number: int) -> None:
        """Kill a node with all that runs on it."""
        self.cluster.remove_node(self.nodes.pop(number), allow_graceful=False)

    def lose(self, number: int) -> None:
        """Kill a node of one processor; another takes its place."""
        self.remove(number)
        self.add(1)

    def replace_dead(self) -> None:
        """What a cluster's operator does for a node that ends by itself, as one does whose agents start too slowly on a busy machine."""
        for number, node in enumerate(self.nodes):
            if any(raylet.process.poll() is not None for raylet in node.all_processes["raylet"]):
                self.lose(number)

    def workers(self) -> list[int]:
        """Process ids of the workers that run a task or an actor now, on our nodes and nobody else's."""
        raylets = {raylet.process.pid for node in self.nodes for raylet in node.all_processes["raylet"]}
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone by now
                parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
                title = (directory / "cmdline").read_bytes()
                if parent in raylets and title.startswith(b"ray::") and not any(word in title for word in (b"IDLE", b"Agent")):
                    found.append(int(directory.name))
        return sorted(found)
