"""How a command ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Say how a command ended; `INTERRUPTED` is `EX_TEMPFAIL` of sysexits.h: the same command may go on."""

    DONE = 0
    NO = 1  # the answer is no: a gate refused, verify found damage, every trial failed
    USAGE = 2
    ERROR = 3
    INTERRUPTED = 75


@dataclass(frozen=True)
class Ending:
    """Say how one job of a command ended: what Hydra hands on to the multirun, also from another process.

    Attributes:
        code: the exit code that it asks for.
        result: what the task returned, None where it failed.
        reason: why it failed.
    """

    code: ExitCode
    result: Any = None
    reason: str = ""
