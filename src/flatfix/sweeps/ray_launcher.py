"""Run the jobs of a multirun as tasks of a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, filter_overrides
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_ray_launcher import ray_launcher
from omegaconf import DictConfig, OmegaConf

from flatfix.errors import UserError
from flatfix.machine import CORES
from flatfix.sweeps.processes import GRACE_S
from flatfix.sweeps.remote import Died, failed, pack, run_packed, unpack

# Ray itself is imported where it is used: every command line imports this module.
if TYPE_CHECKING:
    from ray.exceptions import RayError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10

# What Ray says of a task at length, by the name of its error.
REASONS = {
    "NodeDiedError": "its node of the Ray cluster died",
    "OutOfMemoryError": "killed by Ray: its node had too little memory left",
    "TaskCancelledError": "interrupted",
    "WorkerCrashedError": "its process on the Ray cluster died",
}


class RayLauncher(ray_launcher.RayLauncher):
    """Run each job in a process of its own, on a node of a Ray cluster that has room for it.

    A job writes to `console.log` in its folder, which every node has to see under the same path, as it has to see the
    code and the data. A job that is lost with its node, or killed, is that job's failure and nobody else's.

    Args:
        ray: what hydra-ray-launcher takes: `init`, for `ray.init`, and `remote`, for `ray.remote`. Without `num_cpus`
            the jobs divide the cores of the cluster; without `num_gpus` each has one where there are any.
        workers: jobs at a time.
    """

    def __init__(self, ray: DictConfig, workers: int) -> None:
        super().__init__(ray)
        self._num_workers = workers
        self._running: set[Any] = set()
        self._is_stopping = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what every job needs, and connect to the cluster: in the main thread, for one made here ends with it.

        Raises:
            UserError: the cluster cannot be reached, or an option is wrong.
        """
        import ray

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tell nobody
        init, self._remote = _plain(self.ray_cfg.init), _plain(self.ray_cfg.remote)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if not ray.is_initialized():
                _find(init.get("address"))
                ray.init(**init)
            self._task = ray.remote(**self._remote)(_run)
        except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"hydra.launcher.ray: {error}") from error
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray would have it end the process at once

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs and return how they ended, in their order; several threads may call this at a time.

        Args:
            job_overrides: what the command line of each job says.
            initial_job_idx: number of the first of them.
        """
        running = [self._begin(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
        return [self._end(*job) for job in running]

    def stop(self) -> None:
        """Have the running jobs end soon, and no other begin; safe in a signal handler, and returns at once."""
        self._is_stopping = True
        threading.Thread(target=self._cancel, name="cancel", daemon=True).start()

    def _begin(self, number: int, overrides: Sequence[str]) -> tuple[Any, DictConfig]:
        import ray

        assert self.hydra_context is not None and self.config is not None and self.task_function is not None
        resources = self._resources()
        parts = (self.hydra_context, self.task_function, self.config)
        config, payload = pack(*parts, number=number, overrides=overrides, has_console=True)
        log.info("#%d : %s", number, " ".join(filter_overrides(overrides)))
        task = self._task.options(**resources).remote(payload, os.getcwd(), resources["num_cpus"])
        self._running.add(task)
        if self._is_stopping:
            ray.cancel(task)
        return task, config

    def _end(self, task: Any, config: DictConfig) -> JobReturn:
        import ray

        try:
            return unpack(ray.get(task), config)
        except ray.exceptions.RayError as error:
            return failed(Died(_reason(error)), config)
        finally:
            self._running.discard(task)

    def _cancel(self) -> None:
        import ray

        for task in [*self._running]:
            ray.cancel(task)
        time.sleep(GRACE_S)
        for task in [*self._running]:
            ray.cancel(task, force=True)

    def _resources(self) -> dict[str, float]:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = [int(node.get("CPU", 0)) for node in nodes]
        return {
            "num_cpus": self._remote.get("num_cpus", share(cores, self._num_workers)),
            "num_gpus": self._remote.get("num_gpus", int(any("GPU" in node for node in nodes))),
        }


def _find(address: str | None) -> None:
    """Look whether a cluster answers where Ray would look for one: for ten minutes, and without a word.

    Raises:
        ConnectionError: none does.
    """
    from ray._private.services import canonicalize_bootstrap_address

    if address and "://" in address:  # it answers behind a proxy
        return
    found = canonicalize_bootstrap_address(address)  # type: ignore[arg-type]  # it takes None
    if found is None:  # one is made here
        return
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(
            f"no cluster answers at {found} ({error}). Name one that runs, by "
            "hydra.launcher.ray.init.address=host:port, or make one of this machine alone, by address=local."
        ) from error


def share(cores: Sequence[int], num_jobs: int) -> int:
    """Return how many cores a job may have for so many of them to run at a time, at least one.

    Args:
        cores: of each node.
        num_jobs: jobs at a time; each runs on one node.
    """
    enough = (each for each in range(max(cores, default=1), 1, -1) if sum(node // each for node in cores) >= num_jobs)
    return next(enough, 1)


def _run(payload: bytes, folder: str, num_cpus: float) -> bytes:
    """Run a job and return how it ended: what its process does, on its node."""
    os.chdir(folder)  # as in the sweeper, whose command line may name data from there
    os.environ[CORES] = str(max(1, int(num_cpus)))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run_packed(payload)


def _reason(error: RayError) -> str:
    name = type(error).__name__
    # Of what a task raised Ray makes a traceback, which ends with it.
    return REASONS.get(name) or f"{name}: {str(error).strip().splitlines()[-1]}"


def _plain(config: DictConfig) -> dict[str, Any]:
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return {name: value for name, value in values.items() if value is not None}
