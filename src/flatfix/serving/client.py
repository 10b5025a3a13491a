"""An HTTP/1.1 client that costs little beside the server that it measures."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self, cast
from urllib.parse import urlsplit

import httptools

from flatfix.errors import UserError

CONNECT_S = 5.0
ANSWER_S = 30.0
PORTS = {"http": 80, "https": 443}
BOUNDARY = "flatfix-0e5bd6cd73e441f3a0a9"  # that no picture holds but by a chance of 2 ** -80
FORM = f"multipart/form-data; boundary={BOUNDARY}"


class NoAnswerError(Exception):
    """Report a request that got no whole answer.

    Attributes:
        reason: `unreachable`, `connect_timeout`, `answer_timeout`, `closed` (by the server, amid the answer or instead
            of it) or `not_http`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Answer(NamedTuple):
    """Hold what a server answered.

    Attributes:
        status: of HTTP.
        headers: by their names in lower case; of a header that came twice, the last.
        body: of the answer.
        seconds: from the call to the last byte, with what it took to connect where no connection was idle.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


def form_of(data: bytes, content_type: str = "image/jpeg", field: str = "file") -> bytes:
    """Return the body of a form (RFC 7578) with one file; its content type is `FORM`.

    The file's own name is not sent: it may say more of the picture than the server has to know.
    """
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="picture"\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    )
    return b"".join((head.encode(), data, f"\r\n--{BOUNDARY}--\r\n".encode()))


class Client:
    """Ask one server, over as many connections as there are requests at a time; they are kept open for the next.

    Attributes:
        num_repeated: requests that were sent again: over a kept connection, which the server closed before it began
            to answer. Each goes over a new connection then, once.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        connect_s: float = CONNECT_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        """Take the address, without a look at it.

        Args:
            base_url: `http://` or `https://`, host, port, and a path that all targets lie below.
            headers: that go with each request.
            connect_s: what a connection may take, TLS with it.
            answer_s: what an answer may take, with sending the request.

        Raises:
            UserError: when `base_url` is no such address.
        """
        self.num_repeated = 0
        self._scheme, self._host, self._port, self._path = _parts_of(base_url)
        self._tls = ssl.create_default_context() if self._scheme == "https" else None
        self._connect_s, self._answer_s = connect_s, answer_s
        shown = f"[{self._host}]" if ":" in self._host else self._host
        host = shown if self._port == PORTS[self._scheme] else f"{shown}:{self._port}"
        self._common = "".join(f"{name}: {value}\r\n" for name, value in {"host": host, **(headers or {})}.items())
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are idle."""
        while self._idle:
            self._idle.pop().close()

    async def get(self, target: str) -> Answer:
        """Ask for what lies at a target, such as `/health`.

        Raises:
            NoAnswerError: as `post` does.
        """
        return await self._ask(f"GET {self._path}{target} HTTP/1.1\r\n{self._common}\r\n".encode(), b"")

    async def post(self, target: str, body: bytes, content_type: str = FORM) -> Answer:
        """Send a body to a target.

        Raises:
            NoAnswerError: when there is no connection, or no whole answer in time.
        """
        head = f"POST {self._path}{target} HTTP/1.1\r\n{self._common}content-type: {content_type}\r\n"
        return await self._ask(f"{head}content-length: {len(body)}\r\n\r\n".encode(), body)

    async def _ask(self, head: bytes, body: bytes) -> Answer:
        start = time.perf_counter()
        while self._idle:
            if not (kept := self._idle.pop()).is_open:
                continue
            try:
                return await self._exchange(kept, head, body, start)
            except _UnansweredError:
                # The server closed it while the request was on its way (RFC 9112, 9.3.1): not for the time it took.
                self.num_repeated += 1
                break
        return await self._exchange(await self._connect(), head, body, start)

    async def _exchange(self, connection: _Connection, head: bytes, body: bytes, start: float) -> Answer:
        try:
            async with asyncio.timeout(self._answer_s):
                status, headers, content = await connection.exchange(head, body)
        except TimeoutError as error:
            raise NoAnswerError("answer_timeout", f"no answer within {self._answer_s:g} s") from error
        finally:
            if connection.is_reusable:
                self._idle.append(connection)
            else:
                connection.close()
        return Answer(status, headers, content, time.perf_counter() - start)

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, self._host, self._port, ssl=self._tls
                )
        except TimeoutError as error:
            raise NoAnswerError("connect_timeout", f"no connection within {self._connect_s:g} s") from error
        except OSError as error:  # a refusal, an unknown host, a certificate that is not trusted
            raise NoAnswerError("unreachable", str(error)) from error
        return connection


class _UnansweredError(NoAnswerError):
    """Report a kept connection that the server closed before the first byte of the answer."""


class _Connection(asyncio.Protocol):
    """Exchange one request at a time for its answer; httptools calls the methods that begin with `on_`."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[tuple[int, dict[str, str], bytes]] | None = None
        self._num_exchanged = 0

    @property
    def is_reusable(self) -> bool:
        """Say whether the next request may go over this connection: it is open, and nothing is under way."""
        return self.is_open and self._waiting is None

    async def exchange(self, head: bytes, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request and return status, headers and body of the answer."""
        assert self._transport is not None and self.is_reusable
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._content: list[bytes] = []
        self._has_begun = self._has_head = False
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.writelines((head, body) if body else (head,))
        return await self._waiting

    def close(self) -> None:
        """Drop the connection, with what has not been sent yet."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have all the methods, and not the type.
        self._transport, self.is_open = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:  # an answer that nobody asked for, such as a 408 before the connection is closed
            self.close()
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.is_open = False
            self._fail(NoAnswerError("not_http", f"the server does not speak HTTP/1.1: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._waiting is None:
            return
        if self._has_head and error is None and self._ends_with_connection():
            self.on_message_complete()
        elif self._num_exchanged and not self._has_begun:
            self._fail(_UnansweredError("closed", "the server closed the connection instead of answering"))
        else:
            self._fail(NoAnswerError("closed", f"the server closed the connection: {error or 'no whole answer'}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._has_head = self._parser.get_status_code() >= 200

    def on_body(self, data: bytes) -> None:
        self._content.append(data)

    def on_message_complete(self) -> None:
        if not self._has_head:  # 100 Continue and its like come before the answer
            self._headers = {}
            return
        waiting, self._waiting = self._waiting, None
        self._num_exchanged += 1
        # A server may answer before it has read everything: what it would do with the rest is not known.
        has_sent_all = self._transport is not None and not self._transport.get_write_buffer_size()
        self.is_open = self.is_open and has_sent_all and self._parser.should_keep_alive()
        if waiting is not None and not waiting.done():
            waiting.set_result((self._parser.get_status_code(), self._headers, b"".join(self._content)))

    def _ends_with_connection(self) -> bool:
        return "content-length" not in self._headers and "transfer-encoding" not in self._headers

    def _fail(self, error: NoAnswerError) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)


def _parts_of(base_url: str) -> tuple[str, str, int, str]:
    """Return scheme, host, port and path of an address."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError as error:
        raise UserError(f"--base-url {base_url}: {error}") from error
    if parts.scheme not in PORTS or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise UserError(f"--base-url {base_url}: not the address of a server. Write it as http://127.0.0.1:8000")
    return parts.scheme, parts.hostname, port or PORTS[parts.scheme], parts.path.rstrip("/")
