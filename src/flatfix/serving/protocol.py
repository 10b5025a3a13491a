"""What a connection may do: uvicorn's HTTP/1.1, with bounds on heads, on bodies nobody reads, and on slow readers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from flatfix.serving.problems import CONTENT_TYPE, Problem
from flatfix.serving.settings import Limits
from flatfix.serving.visit import max_body

MAX_HEAD = 65_536  # bytes of a request line and its headers
MAX_PIPELINED = 64  # requests of a connection that wait for the one before them: a packet can hold thousands
NUM_BODIES = 4  # of a body that nobody reads, so many times the largest body is let run out

BROKEN_HTTP = Problem(400, "Broken HTTP", "What was sent is not an HTTP/1.1 request.", reason="broken_http")
HEADERS_TOO_LARGE = Problem(
    431,
    "Headers too large",
    f"A request line and its headers have {MAX_HEAD} bytes at most.",
    reason="headers_too_large",
)

NO_UPGRADE = Problem(400, "Broken HTTP", "HTTP/1.1 only: send a body without the header Upgrade.", reason="broken_http")


class Protocol(HttpToolsProtocol):
    """Speak HTTP/1.1 on one connection: for `uvicorn.Config(http=Protocol)`.

    The limits, and what counts a refusal, come from the state of the application, where `Guard` puts them as the server
    starts: so the class needs no arguments, and workers, which uvicorn starts from a pickled config, have theirs.

    - A head (request line and headers) has `headers_s` to be whole, from the connection on or from its first byte, and
      `MAX_HEAD` bytes: 431. Without a request, a connection lives for `idle_s`.
    - When a request is answered before its body is whole, the rest is read and dropped: a connection that is closed
      with unread bytes is reset, and the client may lose the answer (RFC 9112, 9.6). It has `body_s` and
      `NUM_BODIES` times the largest body for it.
    - A client that does not read its answers for `idle_s` is cut off.
    - Of pipelined requests the first `MAX_PIPELINED` are answered, and the connection is closed: a client has to expect
      that (RFC 9112, 9.3.2).
    - However small its chunks, a body costs as much as its bytes: uvicorn would copy all that waits for each chunk.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self._limits: Limits = self.app_state["limits"]
        self._count_refusal: Callable[[int, str, str], None] = self.app_state["count_refusal"]
        self.timeout_keep_alive = self._limits.idle_s
        self._exit = _Exit(transport, self._leave)
        self._running: RequestResponseCycle | None = None
        self._is_head_begun = False
        self._is_body = False  # between the end of a head and the end of its body
        self._is_leaving = False  # only what was sent before the connection is closed is still read, and dropped
        self._num_whole = 0  # requests
        self._num_bare_bytes = 0  # since the last head, or piece of a body
        self._num_dropped = 0
        self._pieces: list[bytes] = []  # of a body, from what came last
        self._refusal = BROKEN_HTTP
        self._drop_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(self._limits.headers_s, self._end_head_time)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; the request that is being answered learns of it."""
        super().connection_lost(exc)
        for timer in (self._head_timer, self._drop_timer, self._write_timer, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        # uvicorn tells the newest request only, which of several pipelined ones is not the one that runs.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._is_leaving:
            self._drop(len(data))
            return
        self._unset_keepalive_if_required()
        num_whole = self._num_whole
        self._num_bare_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # to what nobody speaks here: the request is answered as it is (RFC 9110, 7.8)
        except httptools.HttpParserError:
            self._pieces.clear()
            self._refuse(self._refusal)
            return
        self._pass_on()
        if self._num_bare_bytes > MAX_HEAD:
            self._refuse(HEADERS_TOO_LARGE)
            return
        if self._drop_timer is not None:
            self._drop(len(data))
        is_head = self._is_head_begun or (not self._is_body and self._num_whole == num_whole)
        if is_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.headers_s, self._end_head_time)

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._is_head_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, but none that comes after a body: the request has begun without it."""
        if not self._is_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End a head, and answer the request.

        Raises:
            _RefusedError: for the parser, which stops.
        """
        if self._num_bare_bytes > MAX_HEAD and self._size_of_head() > MAX_HEAD:
            self._refusal = HEADERS_TOO_LARGE
            raise _RefusedError
        if self.parser.should_upgrade() and self._has_body():
            # llhttp takes such a body for the other protocol. Java's HttpClient offers h2c unless told not to.
            self._refusal = NO_UPGRADE
            raise _RefusedError
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _RefusedError
        super().on_headers_complete()
        self._is_head_begun = False
        self._is_body = True
        self._num_bare_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_body(self, body: bytes) -> None:
        """Keep a piece of a body."""
        self._num_bare_bytes = 0
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """End a body."""
        self._pass_on()
        self._is_body = False
        self._num_whole += 1
        super().on_message_complete()
        if self._drop_timer is not None:
            self._drop_timer.cancel()
            self._drop_timer = None
            # What came of the body has ended the time that a connection may be idle: it begins anew.
            self._num_dropped = 0
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(self._limits.idle_s, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        """Go on with the next request, or with the rest of this one's body."""
        self._running = None
        if self._is_leaving:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._is_body and self.cycle.response_complete and not self.transport.is_closing():
            self._drop_timer = self._abort_after(self._limits.body_s)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self._abort_after(self._limits.idle_s)

    def resume_writing(self) -> None:
        """Go on, as the client reads."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        cycle.transport = self._exit  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def _pass_on(self) -> None:
        """Give the request what came of its body."""
        if self._pieces:
            body = b"".join(self._pieces)
            self._pieces.clear()
            super().on_body(body)

    def _should_upgrade_to_ws(self) -> bool:
        return False

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _has_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        )

    def _refuse(self, problem: Problem) -> None:
        """Answer what is not HTTP, where an answer is due, and close."""
        if self._running is None:
            if not self._is_body:
                self._write(problem)
        elif self._running is self.cycle and self._is_body:
            self._running.disconnected = True
            self._running.message_event.set()
            if not self._running.response_started:
                self._write(problem)
        else:  # the requests before it are answered first, and the last of them closes
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self._leave(is_sending=True)

    def _write(self, problem: Problem) -> None:
        request_id = os.urandom(16).hex()
        body = problem.body(request_id)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", CONTENT_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[problem.status], lines, body))
        self._count_refusal(problem.status, problem.reason, request_id)

    def _leave(self, is_sending: bool | None = None) -> None:
        """Close the connection; while the client still sends, only after it has had time to read the answer."""
        if self._is_leaving:
            return
        if self._is_body if is_sending is None else is_sending:
            self._is_leaving = True
            self.flow.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
        else:
            self.transport.close()  # which waits for the client to read
        if self._drop_timer is None:
            self._drop_timer = self._abort_after(self._limits.body_s)

    def _drop(self, num_bytes: int) -> None:
        self._num_dropped += num_bytes
        if self._num_dropped > NUM_BODIES * max_body(self._limits):
            self.transport.abort()

    def _end_head_time(self) -> None:
        if self._running is None:
            if self._num_bare_bytes:  # browsers connect to no purpose
                self._count_refusal(408, "timeout_headers", os.urandom(16).hex())
            self.transport.abort()
        else:  # answers have their own time
            self._head_timer = self.loop.call_later(self._limits.headers_s, self._end_head_time)

    def _abort_after(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)


class _RefusedError(Exception):
    """Stops the parser."""


class _Exit:
    """What a request knows of its connection: closing it is the protocol's matter."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.close = close
        self.is_closing = transport.is_closing
        self.write = transport.write
