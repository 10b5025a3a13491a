"""Turn Ctrl-C and SIGTERM into one exception that nothing mistakes for an error."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Say that the user or the machine asked the run to end.

    Not a KeyboardInterrupt: Lightning answers that one with `sys.exit(1)`.
    """


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the main thread on the first Ctrl-C or SIGTERM; a second one kills the process."""

    def raise_interrupted(reason: str) -> None:
        raise Interrupted(reason)

    with _heeding(raise_interrupted):
        yield


@contextmanager
def deferring() -> Iterator[Callable[[], str | None]]:
    """Only remember the first Ctrl-C or SIGTERM; a second one kills the process.

    Yields:
        What tells whether there was one, and which: whoever asks raises `Interrupted` when all is safe.
    """
    reasons: list[str] = []
    with _heeding(reasons.append):
        yield lambda: reasons[0] if reasons else None


@contextmanager
def _heeding(react: Callable[[str], None]) -> Iterator[None]:
    """Call `react` on the first signal.

    A signal that the process was told to ignore stays ignored: a shell starts background jobs without Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heed(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        react(f"interrupted by {signal.Signals(number).name}")

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, heed) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
