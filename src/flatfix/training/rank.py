"""One of the processes that rank 0 starts on its machine."""

from __future__ import annotations

import os
import signal
import sys
import threading

from flatfix.training.devices import started_place
from flatfix.training.run import train_along


def main() -> None:
    """Train along with rank 0, and end with it, however it ends."""
    threading.Thread(target=_end_with_rank_zero, daemon=True).start()
    place = started_place()
    assert place
    sys.exit(train_along(place).exit_code)


def _end_with_rank_zero() -> None:
    """Wait for the end of the standard input, which rank 0 holds open and writes nothing to."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGKILL)
