from __future__ import annotations

import asyncio
import json
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
import uvicorn

from flatfix.serving.guard import Guard
from flatfix.serving.logs import AccessLog
from flatfix.serving.metrics import Metrics
from flatfix.serving.protocol import MAX_HEAD, MAX_PIPELINED, NUM_BODIES, Protocol
from flatfix.serving.settings import Limits

HEADERS_S, BODY_S, IDLE_S = 0.15, 0.2, 0.4
MB = 1_000_000
LIMITS = Limits(
    waiting=8,
    waiting_mb=8,
    body_mb=1,
    megapixels=50,
    files=32,
    deadline_s=1,
    body_s=BODY_S,
    headers_s=HEADERS_S,
    idle_s=IDLE_S,
    drain_s=1,
)
GET = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            stage = (await receive())["type"]
            await send({"type": f"{stage}.complete"})
        return
    body = b"early"
    if scope["path"] == "/echo":
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(HEADERS_S * 1.5)
    if scope["path"] == "/big":
        body = bytes(16 * MB)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Running(NamedTuple):
    server: uvicorn.Server
    guard: Guard
    port: int

    def is_empty(self) -> bool:
        state = self.server.server_state
        if state.connections or state.tasks or self.guard.num_waiting or self.guard.num_bytes:
            return False
        lines = self.guard._metrics.render()[0].decode().splitlines()
        return all(line.endswith(" 0.0") for line in lines if line.startswith("http_requests_in_progress{"))


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    guard = Guard(application, limits=LIMITS, hosts=[], metrics=Metrics(), log=AccessLog())
    config = uvicorn.Config(guard, port=0, http=Protocol, ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    yield Running(server, guard, server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def client(running: Running) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as connected:
        yield connected
    wait_until(running.is_empty)  # nothing leaks, whatever a test did


def wait_until(is_so: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def read_answer(client: socket.socket) -> Answer:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, head
        head += byte
    first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    body = b""
    while more := int(headers.get("content-length", 0)) - len(body):
        body += client.recv(more)
    return Answer(int(first.split()[1]), headers, body)


def seconds_to_end(client: socket.socket) -> float:
    """Wait until the server closes, which it does without another byte, and return how long it took."""
    start = time.monotonic()
    try:
        assert client.recv(1) == b""
    except ConnectionError:
        pass
    return time.monotonic() - start


def trickle(client: socket.socket, data: bytes) -> float:
    """Send over and over, slowly, until the server closes, and return how long it took."""
    start = time.monotonic()
    client.settimeout(0.01)
    while time.monotonic() - start < 3:
        try:
            client.sendall(data)
            if client.recv(65536) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    return time.monotonic() - start


def test_a_connection_answers_one_request_after_another(client):
    for body in (b"one", b"two"):
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n" + body)
        assert read_answer(client).body == body


def test_pipelined_requests_are_answered_in_their_order(client):
    posts = [b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(9)]
    client.sendall(b"".join(posts))

    assert [read_answer(client).body for _ in posts] == [b"%d" % number for number in range(9)]


def test_no_more_pipelined_requests_are_kept_than_a_few(client):
    client.sendall(GET * 1000)  # which one packet holds
    answers = b""
    while piece := client.recv(65_536):
        answers += piece
    assert MAX_PIPELINED <= answers.count(b"HTTP/1.1 200 OK") <= MAX_PIPELINED + 1
    assert answers.count(b"HTTP/1.1") == answers.count(b"HTTP/1.1 200 OK")


def test_a_body_in_the_smallest_chunks_arrives_whole(client):
    letters = b"abcdefghij" * 2000
    chunks = b"".join(b"1\r\n%c\r\n" % letter for letter in letters)
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.sendall(head + chunks + b"0\r\n\r\n" + GET)
    assert read_answer(client).body == letters
    assert read_answer(client).status == 200


@pytest.mark.parametrize("sent", [b"", b"G", GET[:-1], b"\r\n"])
def test_a_head_has_its_time_from_the_connection_on(client, sent):
    client.sendall(sent)

    assert HEADERS_S * 0.9 <= seconds_to_end(client) < HEADERS_S + 1


@pytest.mark.parametrize("data", [b"X: y\r\n", b"x", b"\r\n"])
def test_a_head_that_trickles_has_no_longer(client, data):
    client.sendall(b"" if data == b"\r\n" else GET[:-2])

    assert trickle(client, data) < HEADERS_S + 1


@pytest.mark.parametrize("sent", [b"G", b"\r\n"])
def test_the_head_of_a_later_request_has_its_time_from_its_first_byte(client, sent):
    client.sendall(GET)
    read_answer(client)
    client.sendall(sent)

    assert HEADERS_S * 0.9 <= seconds_to_end(client) < IDLE_S


def test_a_head_that_begins_in_the_packet_of_the_request_before_has_its_time(client):
    client.sendall(GET + b"GET /ec")
    read_answer(client)

    assert seconds_to_end(client) < IDLE_S


def test_a_later_head_that_is_late_costs_no_answer_that_is_being_made(client):
    client.sendall(GET.replace(b"/echo", b"/slow") + b"GET /ec")

    assert read_answer(client).status == 200


def test_a_connection_without_a_request_is_closed_after_its_idle_time(client):
    client.sendall(GET)
    read_answer(client)

    assert IDLE_S * 0.9 <= seconds_to_end(client) < IDLE_S + 1


HUGE = b"x" * (MAX_HEAD + 1)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /echo HTTP/1.1\r\nX: " + HUGE,
        b"GET /echo HTTP/1.1\r\nX: " + HUGE + b"\r\n\r\n",
        b"GET /echo HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        b"GET /echo HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET /" + HUGE,
        b"GET /" + HUGE + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /echo HTTP/1.1\r\n" + HUGE,
    ],
)
def test_a_head_that_is_too_large_is_told_so_even_to_a_client_that_goes_on_sending(client, head):
    client.sendall(head)
    client.sendall(b"x" * 200_000)
    answer = read_answer(client)

    assert answer.status == 431 and answer.headers["connection"] == "close"
    assert json.loads(answer.body)["type"] == "/problems/headers_too_large"


def test_a_head_of_usual_size_may_come_with_a_body_in_one_packet(client):
    body = b"x" * (MAX_HEAD * 2)
    client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    assert read_answer(client).body == body


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"hello\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://host HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /echo HTTP/9.9\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nA b: c\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nA: \x00\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: ten\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX",
    ],
)
def test_what_is_no_http_is_told_so_and_closed(client, sent):
    client.sendall(sent)
    answer = read_answer(client)

    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert json.loads(answer.body)["request_id"] == answer.headers["x-request-id"]
    assert client.recv(1) == b""


@pytest.mark.parametrize(
    "path", [b"/%ff%00", b"//a/../b", b"/echo?x=%80", b"*", b"/%0d%0aX:y", b"http://b/echo", b"/%"]
)
@pytest.mark.parametrize("method", [b"GET", b"OPTIONS", b"DELETE"])
def test_an_odd_path_is_a_path(client, method, path):
    client.sendall(method + b" " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")

    assert read_answer(client).status == 200


def test_the_answer_to_head_has_no_body(client):
    client.sendall(b"HEAD /early HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
    head, _, rest = client.recv(65536).partition(b"\r\n\r\n")

    assert b"content-length: 5" in head
    assert rest == b"" or rest.startswith(b"HTTP/1.1 200")


def test_garbage_behind_a_request_does_not_stand_in_for_its_answer(client):
    client.sendall(GET.replace(b"/echo", b"/slow") + b"\x00garbage\r\n\r\n")

    assert read_answer(client).status == 200
    assert seconds_to_end(client) < 1


@pytest.mark.parametrize("version", [b"1.1\r\nConnection: close", b"1.1", b"1.0"])
def test_the_answer_to_a_body_that_is_too_large_reaches_a_client_that_sends_on(client, version):
    body = bytes((NUM_BODIES - 1) * MB)
    client.sendall(b"POST /echo HTTP/%b\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (version, len(body)))
    client.sendall(body)

    assert json.loads(read_answer(client).body)["type"] == "/problems/too_large"


def test_a_body_without_end_is_answered_and_then_cut_off(client):
    client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    sent = 0
    with pytest.raises(ConnectionError):
        while sent < 100 * MB:
            client.sendall(b"fffff\r\n" + bytes(0xFFFFF) + b"\r\n")
            sent += 0xFFFFF
    assert sent < 50 * MB  # what the kernel holds included


def test_a_connection_goes_on_after_the_body_that_nobody_read_and_has_its_idle_time_then(client):
    client.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    assert read_answer(client).body == b"early"
    client.sendall(b"Z" * 9 + GET)
    assert read_answer(client).status == 200
    client.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    read_answer(client)
    client.sendall(b"Z" * 9)

    assert IDLE_S * 0.9 <= seconds_to_end(client) < IDLE_S + 1


def test_a_body_that_nobody_reads_has_its_time(client):
    client.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n\r\n")
    read_answer(client)

    assert trickle(client, b"x") < BODY_S + 1


def test_a_slow_body_is_told_so_and_closed(client):
    client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n\r\nx")
    answer = read_answer(client)

    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert client.recv(1) == b""  # the server has said all, and still reads
    assert trickle(client, b"x") < BODY_S + 1


def test_headers_after_a_body_are_bounded_and_not_kept(client):
    client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    client.sendall(b"X: " + bytes(0x61 for _ in range(MAX_HEAD * 4)))

    assert read_answer(client).status == 431


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
def test_an_offer_of_another_protocol_is_passed_over(client, offer):
    for _ in range(2):
        client.sendall(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % offer)
        assert read_answer(client).status == 200


@pytest.mark.parametrize(
    "length", [b"Content-Length: 2\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"]
)
def test_an_offer_of_another_protocol_with_a_body_is_told_what_to_do(client, length):
    client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + length)
    answer = read_answer(client)

    assert answer.status == 400 and b"without the header Upgrade" in answer.body


@pytest.mark.parametrize(("length", "answers"), [(2, [100, 200]), (2 * MB, [413])])
def test_a_client_that_asks_before_it_sends_is_told_to_or_refused(client, length, answers):
    client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length)
    told = read_answer(client)
    assert told.status == answers[0]
    if answers[-1] == 200:
        client.sendall(b"ab")
        assert read_answer(client).body == b"ab"
    else:
        assert told.headers["connection"] == "close"
        assert client.recv(1) == b""


def test_a_client_that_does_not_read_is_cut_off(running, client):
    client.sendall(GET.replace(b"/echo", b"/big"))

    wait_until(running.is_empty)


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize(
    "sent",
    [
        b"GET /ec",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx",
        b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
        GET.replace(b"/echo", b"/slow") * 20,
        GET.replace(b"/echo", b"/big"),
    ],
)
def test_a_client_may_leave_at_any_time(running, client, sent, is_reset):
    client.sendall(sent)
    if is_reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()

    wait_until(running.is_empty)


@pytest.mark.parametrize(
    ("sent", "reasons"),
    [
        (b"hello\r\n\r\n", ["broken_http"]),
        (b"GET /" + HUGE, ["headers_too_large"]),
        (GET[:-1], ["timeout_headers"]),
        (b"", []),
    ],
)
def test_what_never_became_a_request_is_counted(running, client, sent, reasons):
    def refused():
        lines = running.guard._metrics.render()[0].decode().splitlines()
        counts = dict(line.rsplit(" ", 1) for line in lines if line.startswith("rejected_total{"))
        return {name.split('"')[1]: float(count) for name, count in counts.items()}

    before = refused()
    client.sendall(sent)
    with suppress(ConnectionError):
        while client.recv(65_536):
            pass

    assert [reason for reason, count in refused().items() if count > before.get(reason, 0)] == reasons


def test_workers_get_the_protocol_in_their_config():
    assert pickle.loads(pickle.dumps(Protocol)) is Protocol
