"""Which process looks after a trial, and whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil


def this_process() -> str:
    """Return what this process is known by: where process numbers are its own, its number, and when it began."""
    return f"{_place()} {os.getpid()} {_began(os.getpid())}"


def is_gone(worker: str) -> bool:
    """Tell whether a process has ended for certain: it ran where this one runs, and its number is free or taken anew.

    Args:
        worker: what `this_process` returned there.
    """
    place, number, began = worker.rsplit(" ", 2)
    return place == _place() and _began(int(number)) != began


def _place() -> str:
    """Return the machine since its start and, of its containers, the one: there a process has its number alone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _began(number: int) -> str | None:
    try:
        process = psutil.Process(number)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{process.create_time() - psutil.boot_time():.2f}"  # both move when the clock is set
    except psutil.NoSuchProcess:
        return None
