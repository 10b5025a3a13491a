"""Handing things to a thread that writes them, so that a slow disk or a stalled pipe never holds up the server."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

# A thread that woke for each item would cost the event loop more than writing it there: some wait for each other.
GATHER_S = 0.02

T = TypeVar("T")

_log = logging.getLogger("flatfix.serving")


class Spool(Generic[T]):
    """A bounded queue, and the thread that empties it."""

    def __init__(self, write: Callable[[list[T]], None], max_items: int, name: str) -> None:
        """Start the thread.

        Args:
            write: called in the thread with what has gathered, in order.
            max_items: that wait at most; more are refused.
            name: of the thread.
        """
        self._write = write
        self._max_items = max_items
        self._items: deque[T] = deque()
        self._has_items = threading.Event()
        self._is_urgent = threading.Event()
        self._is_written = threading.Condition()
        self._num_taken = self._num_written = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> bool:
        """Take an item to write soon, or return False where there is no room. Never waits."""
        if len(self._items) >= self._max_items:
            return False
        self._items.append(item)
        if not self._has_items.is_set():
            self._has_items.set()
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was put before is written; return whether it is."""
        with self._is_written:
            last = self._num_taken + len(self._items)
            self._is_urgent.set()
            return self._is_written.wait_for(lambda: self._num_written >= last, timeout_s)

    def close(self, timeout_s: float = 2) -> None:
        """Write what waits and end the thread, unless that takes longer."""
        self._is_closed = True
        self._is_urgent.set()
        self._has_items.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._has_items.wait()
            self._is_urgent.wait(GATHER_S)
            self._is_urgent.clear()
            self._has_items.clear()  # first: what is put, or closed, from here on wakes the thread again
            is_last = self._is_closed
            with self._is_written:
                items = [self._items.popleft() for _ in range(len(self._items))]
                self._num_taken += len(items)
            if items:
                try:
                    self._write(items)
                except Exception:  # without this thread nothing is written any more
                    _log.exception("spool_failed")
            with self._is_written:
                self._num_written = self._num_taken
                self._is_written.notify_all()
