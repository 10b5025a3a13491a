"""What a run has to tell its server, sent in order by a thread of its own, through outages.

While the server is lost everything waits. What it does not take although it is there (a name that MLflow refuses, a
file that is gone, an artifact store without credentials) is set aside, so that it holds up nothing behind it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Literal

from flatfix.console import say

Kind = Literal["metric", "param", "tag", "text", "artifact", "status"]

MAX_BATCH: dict[Kind, int] = {"metric": 1000, "param": 100, "tag": 100}  # MLflow's limits; other kinds go one by one
LARGEST_BATCH = max(MAX_BATCH.values())
NUM_ATTEMPTS = 4  # at a fact that fails for another reason than the two below
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
LONGEST_CLOSING_PAUSE_S = 1.0
LOST_PATIENCE_S = 15.0  # how long `close` waits on a server that does not answer
STUCK_PATIENCE_S = 300.0  # how long it waits on one call that does not return, such as the upload of a large file


class Lost(Exception):
    """The server cannot be told anything at present; the message says why."""


class Refused(Exception):
    """The server is there, and does not take these facts; the message says why."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing to tell: a metric's value at a step, a parameter, a tag, a text, an artifact or the final status.

    `key` is the name; of a text the path among the artifacts, of an artifact the folder there. `value` is what the name
    stands for; of an artifact the path of the local file or folder.
    """

    kind: Kind
    key: str
    value: str | float
    timestamp_ms: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class Unsent:
    """A fact that did not arrive; with the reason where it was the fact's own."""

    fact: Fact
    reason: str | None = None


class Outbox:
    """Send facts in the order in which they are put, from a daemon thread, at least once.

    Args:
        server: What messages call the other end.
        send: Sends facts of one kind, at most `MAX_BATCH` of them. Raises `Lost`, `Refused`, or anything else when it
            cannot tell which it is.
    """

    def __init__(self, server: str, send: Callable[[Sequence[Fact]], None]) -> None:
        self._server = server
        self._send = send
        self._changed = threading.Condition()  # guards everything below it
        self._queue: deque[Fact] = deque()
        self._refused: list[Unsent] = []
        self._batch_limit = LARGEST_BATCH
        self._num_failures = 0  # in a row
        self._last_progress = time.monotonic()
        self._lost_since = 0.0
        self._why_lost: str | None = None
        self._is_closing = False
        self._has_stopped = False
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking-outbox", daemon=True)
        self._thread.start()

    def put(self, facts: Iterable[Fact]) -> None:
        """Take facts to send, and return at once."""
        with self._changed:
            self._queue.extend(facts)
            self._changed.notify_all()

    def close(self) -> None:
        """Send what is left for as long as the server takes it, and end the thread; what did not go is in `unsent`."""
        if self.why_lost is not None:
            say(f"Waiting up to {LOST_PATIENCE_S:.0f} s for {self._server}.")
        with self._changed:
            self._is_closing = True
            closing_since = self._last_progress = time.monotonic()
            self._changed.notify_all()
            self._hurry.set()
            try:
                while not self._is_done() and (left_s := self._deadline(closing_since) - time.monotonic()) > 0:
                    self._changed.wait(left_s)
            finally:  # also when Ctrl-C ends the wait
                self._has_stopped = True
                self._hurry.set()
        self._thread.join(timeout=1)

    @property
    def unsent(self) -> list[Unsent]:
        """What has not arrived: the facts set aside, then those still waiting."""
        with self._changed:
            return [*self._refused, *(Unsent(fact) for fact in self._queue)]

    @property
    def why_lost(self) -> str | None:
        """Why the server cannot be told anything, or None while it can."""
        with self._changed:
            return self._why_lost

    def _is_done(self) -> bool:
        return self._has_stopped or not self._queue

    def _deadline(self, closing_since: float) -> float:
        if self._why_lost is not None:
            return max(self._lost_since, closing_since) + LOST_PATIENCE_S
        return self._last_progress + STUCK_PATIENCE_S

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                self._deliver(batch)
        finally:  # nobody waits for a thread that is gone, whatever ended it
            with self._changed:
                self._has_stopped = True
                self._changed.notify_all()

    def _next_batch(self) -> list[Fact]:
        """Return the next facts of one kind, which stay in the queue, or nothing when the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closing)
            if self._is_done():
                return []
            kind = self._queue[0].kind
            limit = min(self._batch_limit, MAX_BATCH.get(kind, 1))
            return list(takewhile(lambda fact: fact.kind == kind, islice(self._queue, limit)))

    def _deliver(self, batch: Sequence[Fact]) -> None:
        try:
            self._send(batch)
        except Lost as error:
            self._note(str(error))
            self._pause()
        except Exception as error:  # Refused, or whatever it is that `send` cannot tell
            self._note(None)
            if self._set_aside(batch, error):
                return
            self._pause()
        else:
            self._note(None)
            with self._changed:
                for _ in batch:
                    self._queue.popleft()
                self._batch_limit = min(2 * self._batch_limit, LARGEST_BATCH)
                self._advance()

    def _set_aside(self, batch: Sequence[Fact], error: Exception) -> bool:
        """Narrow a batch down to the fact at fault, and take that one out of the way; return False to try it again."""
        with self._changed:
            if len(batch) > 1:
                self._batch_limit = len(batch) // 2
                return True
            if not isinstance(error, Refused) and self._num_failures + 1 < NUM_ATTEMPTS:
                return False
            self._refused.append(Unsent(self._queue.popleft(), str(error)))
            self._advance()
            return True

    def _advance(self) -> None:
        self._num_failures = 0
        self._last_progress = time.monotonic()
        self._changed.notify_all()

    def _pause(self) -> None:
        with self._changed:
            longest_s = LONGEST_CLOSING_PAUSE_S if self._is_closing else LONGEST_PAUSE_S
            pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self._num_failures, 10), longest_s)
            self._num_failures += 1
        self._hurry.wait(pause_s)
        self._hurry.clear()

    def _note(self, why_lost: str | None) -> None:
        """Keep why the server is lost, and say when it is lost and when it is back."""
        with self._changed:
            was_lost = self._why_lost is not None
            self._why_lost = why_lost
            is_lost = why_lost is not None
            if was_lost == is_lost:
                return
            self._lost_since = time.monotonic()
            self._num_failures = 0
            self._changed.notify_all()
        if is_lost:
            say(f"{self._server} is lost ({why_lost}). The run goes on; what it logs is kept and sent later.")
        else:
            say(f"{self._server} is back; what was kept is being sent.")
