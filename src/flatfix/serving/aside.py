"""Calls that may hang, beside the event loop, in a thread that nothing waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec

P = ParamSpec("P")


class Aside:
    """Make calls one after another, in a daemon thread: those of asyncio's own threads keep a process from ending."""

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._calls: SimpleQueue[tuple[Future[None], Callable[[], None]]] = SimpleQueue()
        Thread(target=self._run, name=name, daemon=True).start()

    async def call(self, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make a call when those before it have come back; one that is cancelled before is never made.

        Raises:
            Exception: what the call raises.
        """
        done: Future[None] = Future()
        self._calls.put((done, partial(function, *args, **kwargs)))
        await asyncio.wrap_future(done)

    def _run(self) -> None:
        while True:
            done, call = self._calls.get()
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(call())
                except Exception as error:
                    done.set_exception(error)
            del done, call
