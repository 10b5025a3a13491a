"""Turn Ctrl-C and SIGTERM into the two ways in which a multirun ends early."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping(let_end: Callable[[], None], kill: Callable[[], None]) -> Iterator[None]:
    """Call `let_end` on the first Ctrl-C, and `kill` on the second or on SIGTERM; a further one ends this process.

    Both are called in a thread of their own: a handler runs in the middle of whatever the main thread does, and what
    waits there for a lock that the main thread holds would wait for ever. A signal that the process was told to ignore
    stays ignored, and nothing happens in a thread other than the main one.

    Args:
        let_end: has no further job begin.
        kill: ends the jobs that run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # a handler may put something there
    is_first = True
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def heed(number: int, frame: FrameType | None) -> None:
        nonlocal is_first
        if is_first and number == signal.SIGINT:
            is_first = False
            asked.put(let_end)
            return
        for each in heeded:
            signal.signal(each, signal.SIG_DFL)
        asked.put(kill)

    def act() -> None:
        while (action := asked.get()) is not None:
            action()

    thread = threading.Thread(target=act, name="signals", daemon=True)
    thread.start()
    before = {number: signal.signal(number, heed) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.put(None)
        thread.join()
