"""A proxy in front of an HTTP server that does on purpose what networks do by accident, and keeps count."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.helpers.server import wait_until

CHUNK_BYTES = 1 << 16
ALWAYS = 1 << 60
FAULT_TIMEOUT_S = 60


@dataclass(frozen=True)
class Refuse:
    """Answer with a status of the proxy's own; the server never hears of the request."""

    status: int = 503
    code: str = "SlowDown"


@dataclass(frozen=True)
class Hold:
    """Let the request wait until `FaultProxy.release`, and then drop it, so that the server never hears of it."""


@dataclass(frozen=True)
class HoldAnswer:
    """Let the server do what it was asked, and its answer wait until `FaultProxy.release`; then drop it."""


@dataclass(frozen=True)
class Cut:
    """Pass on so many bytes of the answer's body and break off."""

    after_bytes: int


@dataclass(frozen=True)
class CutRequest:
    """Pass on so many bytes of the request's body and break off."""

    after_bytes: int


Fault = Refuse | Hold | HoldAnswer | Cut | CutRequest


@dataclass
class _Rule:
    pattern: re.Pattern[str]
    fault: Fault
    times: int
    then: Callable[[], object]


class FaultProxy:
    """Pass on what comes in at `endpoint` to a server of this machine, but for what a rule names.

    Attributes:
        requests: `<method> <path and query>` of each request, in order.
        faults: the requests that a rule named, once the fault has happened.
    """

    def __init__(self, port: int) -> None:
        self.requests: list[str] = []
        self.faults: list[str] = []
        self._port = port
        self._rules: list[_Rule] = []
        self._turn = threading.Lock()
        self._released = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def on(self, pattern: str, fault: Fault, times: int = ALWAYS, then: Callable[[], object] = lambda: None) -> None:
        """Let the fault happen to the next `times` requests that match, and call `then` each time it has.

        The pattern is searched in the request's head: `<method> <path and query> HTTP/1.1` and the headers.
        """
        with self._turn:
            self._rules.append(_Rule(re.compile(pattern), fault, times, then))

    def release(self) -> None:
        """Drop what is held, and from now on at once what would be."""
        self._released.set()

    def forget(self) -> None:
        """Let nothing happen any more, and count anew."""
        with self._turn:
            self._rules.clear()
            self.requests.clear()

    def count(self, pattern: str) -> int:
        """Count the requests that match."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def wait_for_faults(self, number: int = 1) -> None:
        """Return when so many faults have happened."""
        wait_until(lambda: len(self.faults) >= number, FAULT_TIMEOUT_S, f"{number} faults; so far {self.faults}")

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=self._serve, args=(self._socket.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Handle the one request of a connection."""
        with client, suppress(OSError):
            head, body = _read_head(client)
            if not head:
                return
            request = head.decode("latin-1")
            with self._turn:
                self.requests.append(request.partition(" HTTP/")[0])
                rule = next((rule for rule in self._rules if rule.times and rule.pattern.search(request)), None)
                if rule:
                    rule.times -= 1
            match rule.fault if rule else Cut(ALWAYS):
                case Refuse() as fault:
                    self._tell(request, rule)
                    _refuse(client, fault)
                case Hold():
                    self._tell(request, rule)
                    self._released.wait()
                case fault:
                    if self._pass_on(client, head, body, fault):
                        self._tell(request, rule)
                    if isinstance(fault, HoldAnswer):
                        self._released.wait()
            client.shutdown(socket.SHUT_RDWR)  # to close is not enough while a thread reads

    def _tell(self, request: str, rule: _Rule | None) -> None:
        assert rule
        with self._turn:
            self.faults.append(request.partition(" HTTP/")[0])
        rule.then()

    def _pass_on(self, client: socket.socket, head: bytes, body: bytes, fault: Fault) -> bool:
        """Pass the request on, and the answer as far as the fault lets it; say whether the fault happened."""
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            # One request a connection: the end of the answer is then the end of the stream.
            server.sendall(head.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n")
            limit = fault.after_bytes if isinstance(fault, CutRequest) else ALWAYS
            upload = threading.Thread(target=_copy, args=(client, server, body, limit), daemon=True)
            upload.start()
            answer, rest = _read_head(server)
            while answer.startswith(b"HTTP/1.1 100"):  # the client waits for it before it sends the body
                with suppress(OSError):  # cut off already: it may have sent the body unasked
                    client.sendall(answer)
                answer, rest = _read_head(server, rest)
            if isinstance(fault, HoldAnswer):
                return bool(answer)
            if isinstance(fault, CutRequest):
                return not answer  # the server cannot have got it all
            client.sendall(answer)
            limit = fault.after_bytes if isinstance(fault, Cut) else ALWAYS
            return _copy(server, client, rest, limit)


def _refuse(client: socket.socket, fault: Refuse) -> None:
    content = f"<Error><Code>{fault.code}</Code><Message>by the proxy</Message></Error>"
    client.sendall(
        f"HTTP/1.1 {fault.status} by the proxy\r\nContent-Type: application/xml\r\nConnection: close\r\n"
        f"Content-Length: {len(content)}\r\n\r\n{content}".encode()
    )
    client.shutdown(socket.SHUT_WR)
    while client.recv(CHUNK_BYTES):  # a reset would overtake the answer
        pass


def _read_head(sender: socket.socket, data: bytes = b"") -> tuple[bytes, bytes]:
    """Read up to the empty line; return all before what follows it, and as much of that as was read with it."""
    while b"\r\n\r\n" not in data:
        chunk = b""
        with suppress(ConnectionResetError):  # an end like any other
            chunk = sender.recv(CHUNK_BYTES)
        if not chunk:
            return b"", b""
        data += chunk
    end = data.index(b"\r\n\r\n") + 4
    return data[:end], data[end:]


def _copy(sender: socket.socket, receiver: socket.socket, chunk: bytes, limit: int) -> bool:
    """Pass on the chunk and what follows it, and break off both ways at the limit; say whether it was reached."""
    with suppress(OSError):  # one of them is gone
        while True:
            receiver.sendall(chunk[:limit])
            limit -= len(chunk)
            if limit < 0:
                for end in (sender, receiver):
                    end.shutdown(socket.SHUT_RDWR)
                return True
            chunk = sender.recv(CHUNK_BYTES)
            if not chunk:
                return False
    return False
