"""The folder through which the metrics of several workers become one.

prometheus_client chooses at its import whether values live in memory or in files that other processes read. So nothing
here imports it: the entry point calls `prepare` first and imports the rest of the server afterwards.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from flatfix.files import locked

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's
LOCKS = "[0-9]*.lock"  # one a process, named by its id

# Open for as long as the process lives: the kernel lets go of the lock however it ends, kill -9 included, while a
# process id says little: it may be a zombie's, or another program's by now.
_own_lock: IO[bytes] | None = None


def prepare(folder: Path) -> None:
    """Make prometheus_client, here and in spawned processes, keep its values in files that all workers read.

    The workers of one supervisor share a folder below `folder`; what servers that ended left there is removed. Each
    worker calls it, and the supervisor may as well, before prometheus_client is imported.

    Args:
        folder: on a local disk; made when it is missing. Several servers may share it.

    Raises:
        RuntimeError: when prometheus_client was imported before.
    """
    global _own_lock
    if _own_lock is not None:
        return
    if "prometheus_client" in sys.modules:
        raise RuntimeError("prometheus_client is imported already: its values are this process's alone")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "start.lock"):
        if VARIABLE not in os.environ:  # else the supervisor prepared it, or a person did
            os.environ[VARIABLE] = str(_run_folder(folder))
        run = Path(os.environ[VARIABLE])
        run.mkdir(parents=True, exist_ok=True)
        _own_lock = (run / f"{os.getpid()}.lock").open("ab")
        fcntl.flock(_own_lock, fcntl.LOCK_EX)
        _remove_gauges(run, str(os.getpid()))  # of an earlier worker that had the same process id


def remove_dead(run: Path) -> None:
    """Remove the gauges of workers that ended: what they measured is no more. Their counters stay in the sums."""
    for path in run.glob(LOCKS):
        with suppress(BlockingIOError), locked(path, waits=False):  # a new worker of this id waits for it
            _remove_gauges(run, path.stem)


def _run_folder(folder: Path) -> Path:
    """Return the folder of this server, new unless another worker of it lives; remove those of servers that ended."""
    supervisor = multiprocessing.parent_process()
    for run in [path for path in folder.iterdir() if path.is_dir()]:
        if not any(_is_held(lock) for lock in run.glob(LOCKS)):
            shutil.rmtree(run)
    return folder / f"{socket.gethostname()}-{supervisor.pid if supervisor else os.getpid()}"


def _remove_gauges(run: Path, process: str) -> None:
    for path in run.glob(f"gauge_live*_{process}.db"):
        path.unlink(missing_ok=True)  # another worker may be at it


def _is_held(lock: Path) -> bool:
    try:
        with locked(lock, waits=False):
            return False
    except BlockingIOError:
        return True
