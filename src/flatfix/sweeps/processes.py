"""Run the jobs of a multirun as processes of this machine, some at a time, so that none takes another down."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, cast

from hydra.core.utils import JobReturn, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from flatfix.machine import CORES, death, num_cores
from flatfix.sweeps.remote import Died, failed, pack, run_packed, unpack

log = logging.getLogger(__name__)

GRACE_S = 20.0  # from asking a process to end to ending it
# The last two are what Optuna and Alembic import when a storage is opened.
PRELOADED = ("flatfix.sweeps.job", "flatfix.sweeps.trial_job", "optuna.storages._rdb.models", "alembic.context")
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")
THREADS = "OMP_NUM_THREADS"
GPUS = "CUDA_VISIBLE_DEVICES"

# Whoever starts a process with `multiprocessing` also asks how all the others are, which two threads must not at once.
_PROCESSES = threading.Lock()


class ProcessLauncher(Launcher):
    """Run each job in a process of its own, at most `workers` of them at a time.

    A job that takes too much memory, or is killed, is a failure of that job alone. Several at a time divide the cores
    and the GPUs of the machine, and write to `console.log` in their folders rather than to the terminal.

    Args:
        workers: jobs at a time.
        preloaded: modules that are imported once for all jobs, where their processes can be forked.
    """

    def __init__(self, workers: int, preloaded: Sequence[str] = PRELOADED) -> None:
        self._num_workers = workers
        self._preloaded = list(preloaded)
        self._gpus = _visible_gpus()
        self._places: queue.PriorityQueue[int] = queue.PriorityQueue()
        for place in range(workers):
            self._places.put(place)
        self._is_stopped = False
        # What goes in at the one end is never read, and so wakes every thread that waits at the other.
        self._stopped, self._stop = multiprocessing.Pipe(duplex=False)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what all jobs need, and begin to import what they share."""
        self._hydra_context, self._task_function, self._config = hydra_context, task_function, config
        # Neither CUDA nor the libraries of a Mac outlive a fork once they have been used.
        can_fork = sys.platform == "linux" and not self._gpus
        self._context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        if can_fork:
            # Hydra looks for its plugins in each job, as it did here.
            plugins = [name for name in sys.modules if name.startswith(PLUGINS)]
            self._context.set_forkserver_preload([*self._preloaded, *plugins])
            with _environment(self._shares(0)), _beyond_ctrl_c():  # the libraries read their shares when imported
                forkserver.ensure_running()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs and return how they ended, in their order; several threads may call this at a time.

        Args:
            job_overrides: what the command line of each job says.
            initial_job_idx: number of the first.
        """
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        if len(numbers) == 1:
            return [self._run(numbers[0], job_overrides[0])]
        with ThreadPoolExecutor(self._num_workers) as pool:
            try:
                return list(pool.map(self._run, numbers, job_overrides))
            except BaseException:
                self.stop()  # or the pool would wait for all of them
                raise

    def stop(self) -> None:
        """Have the running jobs end soon and no other begin; returns at once, and is safe in a signal's handler."""
        if not self._is_stopped:
            self._is_stopped = True
            self._stop.send_bytes(b"stop")

    def close(self) -> None:
        """Have the running jobs end, and wait for that."""
        self.stop()
        places = [self._places.get() for _ in range(self._num_workers)]
        for place in places:
            self._places.put(place)

    def _run(self, number: int, overrides: Sequence[str]) -> JobReturn:
        place = self._places.get()
        try:
            config, payload = pack(
                self._hydra_context,
                self._task_function,
                self._config,
                number=number,
                overrides=overrides,
                has_console=self._num_workers > 1,
            )
            if self._is_stopped:
                return failed(Died("interrupted"), config)
            log.debug("#%d : %s", number, " ".join(filter_overrides(overrides)))
            return self._follow(config, payload, {**os.environ, **self._shares(place)})
        finally:
            self._places.put(place)

    def _follow(self, config: DictConfig, payload: bytes, environment: Mapping[str, str]) -> JobReturn:
        """Start a process, wait for its end, and return what it says or what is to be said of it."""
        results, end_of_job = multiprocessing.Pipe(duplex=False)
        with results:
            with end_of_job, _PROCESSES, _beyond_ctrl_c():
                process = self._context.Process(target=_work, args=(payload, environment, end_of_job))
                try:
                    process.start()
                except (OSError, EOFError) as error:  # no memory for it, or what forks it was killed
                    return failed(Died(f"its process did not start: {error or type(error).__name__}"), config)
            try:
                answer = self._answer(process, results)
            except BaseException:
                self.stop()
                self._answer(process, results)
                raise
            finally:
                exit_code = _reap(process)
        if answer is None:
            return failed(Died("interrupted" if self._is_stopped else death(exit_code)), config)
        return unpack(answer, config)

    def _answer(self, process: BaseProcess, results: Connection) -> bytes | None:
        """Wait for the answer of a job, or for its end, which is not far once this launcher is stopped."""
        timeout_s: float | None = None
        waiting: list[Connection | int] = [results, process.sentinel, self._stopped]
        while ready := connection.wait(waiting, timeout_s):
            if results in ready:
                with suppress(EOFError):
                    return results.recv_bytes()
                return None
            if process.sentinel in ready:
                if not _is_orphaned(process):
                    return None
                waiting.remove(process.sentinel)
            if self._stopped in ready:
                _send(process, signal.SIGTERM)
                waiting.remove(self._stopped)
                timeout_s = GRACE_S
        _send(process, signal.SIGKILL)
        return None

    def _shares(self, place: int) -> dict[str, str]:
        """Return the variables that give a job its share of the machine."""
        if self._num_workers == 1:
            return {}
        cores = max(1, num_cores() // self._num_workers)
        asked = os.environ.get(THREADS, "")
        threads = min(cores, int(asked)) if asked.isdecimal() else cores
        shares = {CORES: str(cores), THREADS: str(threads)}
        return shares | ({GPUS: self._gpus[place % len(self._gpus)]} if self._gpus else {})


def _work(payload: bytes, environment: Mapping[str, str], results: Connection) -> None:
    """Run a job and send how it ended: what the process of a job does."""
    os.setsid()  # Ctrl-C in the terminal is for the sweeper
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    if CORES in environment and "torch" in sys.modules:  # imported for all jobs, which may have had another share
        sys.modules["torch"].set_num_threads(int(environment[THREADS]))
    answer = run_packed(payload)
    with suppress(BrokenPipeError):  # nobody listens any more
        results.send_bytes(answer)


def _end_with_parent() -> None:
    """Wait until the sweeper is gone, however it ended, and end this process as the sweeper would have."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _is_orphaned(process: BaseProcess) -> bool:
    """Tell whether a process lives that has ended by what is heard: the one that forked it is gone."""
    with _PROCESSES:
        return process.exitcode is not None and _send(process, 0)


def _reap(process: BaseProcess) -> int:
    """Wait for the end of a process, though not for ever, and return its exit code."""
    if not connection.wait([process.sentinel], GRACE_S):
        _send(process, signal.SIGKILL)
        connection.wait([process.sentinel])
    with _PROCESSES:
        process.join()
        exit_code = cast(int, process.exitcode)
        process.close()
        return exit_code


def _send(process: BaseProcess, number: int) -> bool:
    """Send a signal to a process, and tell whether there is one."""
    with suppress(ProcessLookupError):
        os.kill(cast(int, process.pid), number)
        return True
    return False


def _visible_gpus() -> list[str]:
    """Return what CUDA calls the GPUs that this process may use, without the seconds that importing torch takes."""
    chosen = os.environ.get(GPUS)
    if chosen is not None:
        names = map(str.strip, chosen.split(","))
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # as CUDA reads it
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return []
    return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _beyond_ctrl_c() -> Iterator[None]:
    """Have a process that starts here not heed Ctrl-C until it has left this terminal's session."""
    resource_tracker.ensure_running()  # when that starts it lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
