from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    num_before: int  # requests that came over the same connection before


# What is sent back, byte by byte; an empty answer closes the connection, None leaves it silent.
Respond = Callable[[Request], bytes | None]


def answer(body: bytes | dict[str, Any], status: int = 200, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


@dataclass
class TinyHttp:
    """A server on a thread of its own; it closes a connection after an answer that says so."""

    respond: Respond
    reads_body: bool = True
    tls: ssl.SSLContext | None = None
    num_connections: int = 0
    requests: list[Request] = field(default_factory=list)
    has_closed: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        num_before = 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")[:-2]
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = b""
                if self.reads_body:
                    body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, target, _ = first.split(" ")
                self.requests.append(Request(method, target, headers, body, num_before))
                num_before += 1
                said = self.respond(self.requests[-1])
                writer.write(said or b"")
                await writer.drain()
                if said == b"" or b"Connection: close" in (said or b""):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        self.has_closed.set()


@contextmanager
def tiny_http(respond: Respond, **options: Any) -> Iterator[TinyHttp]:
    server = TinyHttp(respond, **options)
    loop = asyncio.new_event_loop()

    def work() -> None:
        asyncio.set_event_loop(loop)
        listening = loop.run_until_complete(asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=server.tls))
        server.port = listening.sockets[0].getsockname()[1]
        is_ready.set()
        loop.run_forever()
        listening.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    is_ready = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    assert is_ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
