from __future__ import annotations

import asyncio
import email
import email.policy
import socket
import ssl
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flatfix.errors import UserError
from flatfix.serving.client import FORM, Answer, Client, NoAnswerError, form_of
from tests.helpers.tiny_http import Request, Respond, TinyHttp, answer, tiny_http

BIG = bytes(range(256)) * 40_000  # 10 MB: more than the buffers of a connection hold


def ask(
    respond: Respond,
    calls: Callable[[Client, TinyHttp], Coroutine[Any, Any, Any]],
    *,
    answer_s: float = 10,
    **options: Any,
) -> tuple[Any, TinyHttp]:
    """Run calls of one client against a server; return what they return, and the server."""

    async def main(server: TinyHttp) -> Any:
        async with Client(server.url, answer_s=answer_s) as client:
            return await calls(client, server)

    with tiny_http(respond, **options) as server:
        return asyncio.run(main(server)), server


def failure_of(respond: Respond, **options: Any) -> NoAnswerError:
    async def calls(client: Client, _: TinyHttp) -> None:
        await client.get("/")

    with pytest.raises(NoAnswerError) as caught:
        ask(respond, calls, **options)
    return caught.value


def get(client: Client, _: TinyHttp) -> Coroutine[Any, Any, Answer]:
    return client.get("/health")


def test_an_answer_has_status_headers_body_and_the_seconds_it_took() -> None:
    (found, took), server = ask(lambda _: answer(b"no", 418, "X-Request-ID: 7"), timed_get)
    assert (found.status, found.body, found.headers) == (418, b"no", {"content-length": "2", "x-request-id": "7"})
    assert 0 < found.seconds <= took
    assert (server.requests[0].method, server.requests[0].target) == ("GET", "/health")
    assert server.requests[0].headers == {"host": f"127.0.0.1:{server.port}"}


async def timed_get(client: Client, _: TinyHttp) -> tuple[Answer, float]:
    start = asyncio.get_running_loop().time()
    found = await client.get("/health")
    return found, asyncio.get_running_loop().time() - start


def test_a_form_arrives_as_the_standard_library_reads_forms() -> None:
    _, server = ask(lambda _: answer(b""), lambda client, _: client.post("/predict", form_of(BIG, "image/png")))
    (request,) = server.requests
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    (part,) = email.message_from_bytes(head + request.body, policy=email.policy.HTTP).iter_parts()
    assert part["content-disposition"].params["name"] == "file"
    assert part.get_content_type() == "image/png"
    assert request.body.count(BIG) == 1
    assert FORM == request.headers["content-type"]


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdef",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef",
    ],
    ids=["in chunks", "until the connection ends", "after 100 Continue"],
)
def test_every_framing_of_an_answer_is_understood(said: bytes) -> None:
    found, _ = ask(lambda _: said, get)
    assert (found.status, found.body) == (200, b"abcdef")


def test_requests_one_after_another_share_a_connection_and_those_at_a_time_have_their_own() -> None:
    async def calls(client: Client, server: TinyHttp) -> tuple[int, int]:
        for _ in range(5):
            await client.get("/")
        alone = server.num_connections
        await asyncio.gather(*(client.get("/") for _ in range(4)))
        await asyncio.gather(*(client.get("/") for _ in range(4)))
        return alone, server.num_connections

    (alone, together), _ = ask(lambda _: answer(b""), calls)
    assert (alone, together) == (1, 4)


def test_an_answer_that_ends_its_connection_is_followed_by_another_connection() -> None:
    async def calls(client: Client, _: TinyHttp) -> int:
        return [(await client.get("/")).status for _ in range(2)].count(200)

    found, server = ask(lambda _: answer(b"", 200, "Connection: close"), calls)
    assert (found, server.num_connections) == (2, 2)


def test_a_connection_that_was_closed_while_idle_is_opened_anew() -> None:
    async def calls(client: Client, server: TinyHttp) -> int:
        for _ in range(3):
            await client.get("/")
        return client.num_repeated

    repeated, server = ask(lambda request: b"" if request.num_before else answer(b""), calls)
    assert (repeated, server.num_connections, len(server.requests)) == (2, 3, 5)


def test_a_request_is_repeated_only_once() -> None:
    def respond(request: Request) -> bytes:
        return b"" if server_requests and request.target == "/predict" else answer(b"")

    async def calls(client: Client, server: TinyHttp) -> tuple[str, int]:
        await client.get("/")
        server_requests.append(1)
        with pytest.raises(NoAnswerError) as caught:
            await client.post("/predict", b"picture")
        return caught.value.reason, client.num_repeated

    server_requests: list[int] = []
    found, server = ask(respond, calls)
    assert found == ("closed", 1)
    assert [request.target for request in server.requests] == ["/", "/predict", "/predict"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhalf", "closed"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not_http"),
        (None, "answer_timeout"),
    ],
)
def test_what_is_no_whole_answer_has_its_reason(said: bytes | None, reason: str) -> None:
    assert failure_of(lambda _: said, answer_s=0.2 if said is None else 10).reason == reason


def test_a_connection_whose_answer_came_too_late_is_not_used_again() -> None:
    async def calls(client: Client, server: TinyHttp) -> bytes:
        with pytest.raises(NoAnswerError):
            await client.get("/slow")
        return (await client.get("/quick")).body

    found, server = ask(lambda request: None if request.target == "/slow" else answer(b"mine"), calls, answer_s=0.2)
    assert (found, server.num_connections) == (b"mine", 2)


def test_an_answer_before_the_whole_request_was_sent_is_read_and_the_connection_is_given_up() -> None:
    async def calls(client: Client, _: TinyHttp) -> int:
        return (await client.post("/predict", BIG)).status

    found, _ = ask(lambda _: answer(b"", 413), calls, reads_body=False)
    assert found == 413


def test_nobody_listening_is_unreachable() -> None:
    async def call(port: int) -> None:
        await Client(f"http://127.0.0.1:{port}").get("/")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(NoAnswerError, match="Connect call failed") as caught:
            asyncio.run(call(taken.getsockname()[1]))
    assert caught.value.reason == "unreachable"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://me:pw@host"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="--base-url"):
        Client(url)


def test_a_path_in_the_address_stands_before_every_target() -> None:
    async def call(server: TinyHttp) -> None:
        async with Client(f"{server.url}/tires/", headers={"authorization": "Bearer k"}) as client:
            await client.get("/health")

    with tiny_http(lambda _: answer(b"")) as server:
        asyncio.run(call(server))
    assert server.requests[0].target == "/tires/health"
    assert server.requests[0].headers["authorization"] == "Bearer k"


def test_https_is_spoken_with_those_whose_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path / "certificate.pem"))
    assert failure_of(lambda _: answer(b""), tls=context).reason == "unreachable"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    found, _ = ask(lambda _: answer(b"secret"), get, tls=context)
    assert found.body == b"secret"


def certificate(path: Path) -> Path:
    """Write a key and a certificate of 127.0.0.1 that it signs itself."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path
