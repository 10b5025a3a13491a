"""What this process runs on."""

from __future__ import annotations

import os
import platform
import signal
from contextlib import suppress
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of each period of as many microseconds
CORES = "FLATFIX_CORES"
"""Variable of the environment that holds the share of a process that divides the cores with others."""


def num_cores() -> int:
    """Count the processor cores that this process may use.

    In a container they are as many as its quota pays for, in a sweep of several workers the share of one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no container, or its quota is the word "max"
        quota, period = map(int, CPU_QUOTA.read_text().split())
        cores = min(cores, max(1, quota // period))
    with suppress(KeyError, ValueError):
        cores = min(cores, max(1, int(os.environ[CORES])))
    return cores


def rank() -> int:
    """Return the number of this process among those that torchrun or srun started to train one model, else 0."""
    for count, number in (("WORLD_SIZE", "RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")):
        if int(os.environ.get(count, "1")) > 1:
            return int(os.environ.get(number, "0"))
    return 0


def death(exit_code: int) -> str:
    """Say how a process ended, by the exit code that `subprocess` or `multiprocessing` gives it."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    names = {each.value: each.name for each in signal.Signals}
    hint = " (often the machine's answer to too much memory)" if exit_code == -signal.SIGKILL else ""
    return f"killed by {names.get(-exit_code, f'signal {-exit_code}')}{hint}"


def cpu_name() -> str:
    """Return how the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
