"""The exit codes of every entry point."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Say how a command ended; `INTERRUPTED` is `EX_TEMPFAIL` of sysexits.h: the same command may go on."""

    DONE = 0
    NO = 1  # the answer is no: a gate refused, verify found damage, every trial failed
    USAGE = 2
    ERROR = 3
    INTERRUPTED = 75
