"""What a process costs, its workers with it."""

from __future__ import annotations

import subprocess
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

EVERY_S = 0.2


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, and return the most memory that it and its descendants had at a time.

    It is the proportional set size: what processes share, as forked workers do, counts once.
    """
    peak = 0
    root = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, held_bytes(root))
        with suppress(subprocess.TimeoutExpired):
            process.wait(EVERY_S)
    return peak


def held_bytes(root: psutil.Process) -> int:
    """Return the memory that a process and its descendants hold, what they share once."""
    held = 0
    for each in family(root):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            held += each.memory_full_info().pss
    return held


def cpu_s(root: psutil.Process) -> float:
    """Return the seconds that a process and its living descendants have computed, in user mode and in the kernel."""
    used = 0.0
    for each in family(root):
        with suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            used += times.user + times.system
    return used


def family(root: psutil.Process) -> list[psutil.Process]:
    """Return a process and its living descendants."""
    with suppress(psutil.NoSuchProcess):
        return [root, *root.children(recursive=True)]
    return []


class Watch:
    """Note the most memory that a process and its descendants hold, until the block ends.

    Attributes:
        peak_bytes: so far; proportional set size, as in `peak_bytes`.
    """

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.peak_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, held_bytes(self.root))
            if self._is_over.wait(EVERY_S):
                return
