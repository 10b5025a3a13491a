"""A real Ray cluster of two nodes on this machine, of which the second can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

MEMORY_BYTES = 100 * 2**20  # for the objects of each node


class RayCluster:
    """Two nodes with a core each; as a context manager they run inside and are gone outside, with all they started."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported
        self._folder = Path(tempfile.mkdtemp(prefix="flatfix-ray-", dir="/tmp"))  # a short path: it is that of sockets

    @property
    def address(self) -> str:
        """Where a sweep finds the cluster."""
        return str(self._cluster.address)

    def kill_second_node(self) -> None:
        """End everything on the second node at once, as a machine does that loses its power."""
        self._kill(self._second)

    def __enter__(self) -> Self:
        from ray._private.utils import get_ray_address_file
        from ray.cluster_utils import Cluster

        self._recorded = Path(get_ray_address_file(None))  # where a command without an address would look
        self._recorded.parent.mkdir(parents=True, exist_ok=True)  # Ray makes the folder only for a node without its own
        on_sigterm = signal.getsignal(signal.SIGTERM)
        node = {"num_cpus": 1, "object_store_memory": MEMORY_BYTES, "include_dashboard": False}
        self._cluster = Cluster()
        try:
            self._first = self._cluster.add_node(**node, temp_dir=str(self._folder))
            self._second = self._cluster.add_node(**node)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has its own
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for node in self._cluster.list_all_nodes():
            self._kill(node)
        shutil.rmtree(self._folder)
        self._recorded.unlink(missing_ok=True)

    def _kill(self, node: Any) -> None:
        raylets = [psutil.Process(each.process.pid) for each in node.all_processes.get("raylet", [])]
        workers = [child for raylet in raylets for child in raylet.children(recursive=True)]
        for process in [*raylets, *workers]:
            process.kill()
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        psutil.wait_procs(workers, timeout=20)
