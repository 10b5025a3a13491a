"""One request on its way through the guard."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flatfix.serving.answers import ID_PATTERN
from flatfix.serving.problems import Problem
from flatfix.serving.settings import Limits

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(ID_PATTERN.encode())
_WANTED = frozenset((b"content-length", b"transfer-encoding", b"host", b"x-request-id", b"expect"))


class LateError(Exception):
    """Say that a request, or its body, took longer than it may."""


def max_body(limits: Limits) -> int:
    """Return the most bytes of a body."""
    return limits.body_mb * 1_000_000


def too_large(limits: Limits) -> Problem:
    """Return the problem of a body that is larger."""
    detail = f"A body has {limits.body_mb} MB at most (limits.body_mb)."
    return Problem(413, "Body too large", detail, reason="too_large")


class Visit:
    """Stand between the server and the application for one request: a `receive` and a `send` that keep count.

    Attributes:
        request_id: what the client calls it, if that is harmless, or a new one.
        hosts: each `Host` header.
        length: of the body, bytes, as announced; None when it comes in chunks.
        is_wrong: whether its announcement makes no sense.
        num_bytes: of the body, received so far.
        status: of the answer; 0 until there is one.
        reason: of the refusal, if it was one.
        is_whole: whether the body is.
        is_started: whether the answer is.
        is_answered: whether the answer is whole.
        is_gone: whether the client went away before that.
    """

    __slots__ = (
        "_expects",
        "_limits",
        "_receive",
        "_send",
        "_task",
        "_timeout",
        "_watch",
        "_when_late",
        "hosts",
        "is_answered",
        "is_gone",
        "is_started",
        "is_whole",
        "is_wrong",
        "length",
        "num_bytes",
        "reason",
        "request_id",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        found: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            if name in _WANTED:
                found.setdefault(name, []).append(value)
        offered = found.get(b"x-request-id")
        if offered is not None and _REQUEST_ID.fullmatch(offered[0]):
            self.request_id = offered[0].decode("ascii")
        else:
            # Not os.urandom, a system call: it lets go of the interpreter, which is dear to get back under load.
            self.request_id = f"{random.getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.hosts = found.get(b"host", [])
        self.length: int | None = None
        self.is_wrong = False
        if b"transfer-encoding" not in found:
            lengths = set(found.get(b"content-length", [b"0"]))
            text = lengths.pop()
            self.is_wrong = bool(lengths) or not text.isdigit() or len(text) > 18
            self.length = 0 if self.is_wrong else int(text)
        self.num_bytes = 0
        self.status = 0
        self.reason: str | None = None
        self.is_whole = self.length == 0
        self.is_started = self.is_answered = self.is_gone = False
        self._receive = receive
        self._send = send
        self._limits = limits
        self._expects = b"expect" in found
        self._when_late = 0.0
        self._timeout: asyncio.Timeout | None = None
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Task[Message] | None = None

    async def run(self, app: App, scope: Scope) -> None:
        """Call the application.

        Raises:
            LateError: after `body_s` without the whole body, or after `deadline_s`.
        """
        limits, now = self._limits, asyncio.get_running_loop().time()
        self._task = asyncio.current_task()
        self._when_late = now + limits.deadline_s
        when = self._when_late if self.is_whole else min(self._when_late, now + limits.body_s)
        try:
            async with asyncio.timeout_at(when) as timeout:
                self._timeout = timeout
                await app(scope, self.receive, self.send)
        except TimeoutError as error:
            if timeout.expired():
                raise LateError from error
            raise
        except asyncio.CancelledError:
            if not self.is_gone:
                raise
            # It was cancelled by the watch, and by nobody else: the task goes on.
            if self._task is not None and self._task.uncancel() > 0:
                raise
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def receive(self) -> Message:
        """Pass on what the client sends.

        Raises:
            Problem: 413 where a body grows larger than it may.
        """
        self._expects = False  # the server told the client to go on
        if self._watch is not None:
            return await asyncio.shield(self._watch)
        message = await self._receive()
        if message["type"] != "http.request":
            self.is_gone = not self.is_answered
            return message
        self.num_bytes += len(message.get("body", b""))
        if self.num_bytes > max_body(self._limits):
            raise too_large(self._limits)
        if not message.get("more_body", False):
            self._end_body()
        return message

    def _end_body(self) -> None:
        if not self.is_whole:
            self.is_whole = True
            if self._timeout is not None:
                self._timeout.reschedule(self._when_late)
        # From here on the client can say nothing but that it goes.
        self._watch = asyncio.get_running_loop().create_task(self._wait_for_end())

    async def _wait_for_end(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.is_answered:
            self.is_gone = True
            if self._task is not None:
                self._task.cancel()
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the application answers, with the request id."""
        if message["type"] == "http.response.start":
            self.is_started = True
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode("ascii"))]
            if self._expects:  # a client that was never told to go on may send its body, or the next request
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            self.is_answered = True
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem."""
        self.reason = problem.reason
        await problem.send(self.send, self.request_id)
