"""What a process costs, its workers with it."""

from __future__ import annotations

import subprocess
from contextlib import suppress

import psutil

EVERY_S = 0.2


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, and return the most memory that it and its descendants had at a time.

    It is the proportional set size: what processes share, as forked workers do, counts once.
    """
    peak = 0
    root = psutil.Process(process.pid)
    while process.poll() is None:
        now = 0
        with suppress(psutil.NoSuchProcess):
            for each in (root, *root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    now += each.memory_full_info().pss
        peak = max(peak, now)
        with suppress(subprocess.TimeoutExpired):
            process.wait(EVERY_S)
    return peak
