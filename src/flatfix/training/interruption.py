"""Turn Ctrl-C and SIGTERM into one exception that nothing mistakes for an error."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Say that the user or the machine asked the run to end.

    Not a KeyboardInterrupt: Lightning answers that one with `sys.exit(1)`.
    """


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the main thread on the first Ctrl-C or SIGTERM; a second one kills the process.

    A signal that the process was told to ignore stays ignored: a shell starts background jobs without Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_interrupted(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(f"interrupted by {signal.Signals(number).name}")

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, raise_interrupted) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
