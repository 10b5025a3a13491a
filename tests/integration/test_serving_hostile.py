"""The real server and what nobody sends who means well; see `tests.helpers.hostile`."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from flatfix.data.sources.elpv import ElpvSource
from tests.helpers.flatfix_server import FlatfixServer
from tests.helpers.hostile import (
    Case,
    bombs,
    forms,
    json_bodies,
    mutations,
    no_pictures,
    odd_pictures,
    polyglots,
    truncations,
    wrong_answers,
)
from tests.helpers.images import blank_png, colours, encode
from tests.helpers.server import wait_until
from tests.helpers.serving import promoted, two_packages
from tests.helpers.shared_data import shared_pictures

pytestmark = pytest.mark.service

HEADERS_S = 2
GOOD = encode(colours(200, 300), "JPEG")
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n"


# Short, so that nobody has to wait long to see slow clients thrown out.
TIMES = (f"limits.headers_s={HEADERS_S}", "limits.body_s=3", "limits.idle_s=5")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlatfixServer]:
    folder = tmp_path_factory.mktemp("hostile")
    shelf, _ = promoted(folder, two_packages(folder / "packages"))
    with FlatfixServer(folder / "server", shelf.uri, *TIMES) as running:
        yield running


@pytest.fixture(autouse=True)
def answers_as_before(server: FlatfixServer) -> Iterator[None]:
    """Whatever came, the process is the same, a good picture has the answer of before, and nothing is left over."""
    pid, before = server.pid, said_of(server, GOOD)
    yield
    wait_until(lambda: num_in_progress(server) == 0, 15, "the end of every request")
    assert server.pid == pid
    assert said_of(server, GOOD) == before
    assert "Traceback" not in server.log
    assert "request_failed" not in server.log
    assert "PIL" not in server.log  # what is odd about a client's picture is nothing to log


def said_of(server: FlatfixServer, picture: bytes) -> object:
    return server.predict(picture)["predictions"]


def num_in_progress(server: FlatfixServer) -> float:
    text = server.get("/metrics")[1].decode()
    waiting = re.findall(r'^(?:http_requests_in_progress\{handler="(?!/metrics").*\}|queue_depth) (.+)$', text, re.M)
    return sum(map(float, waiting))


@cache
def photographs() -> tuple[bytes, ...]:
    """Some real pictures, as what they are and as what others would make of them."""
    source = ElpvSource()
    found = [source.read(record) for record in source.records()[:1200:200]]
    images = [Image.open(io.BytesIO(data)) for data in found]
    return (
        *found,
        *(encode(image, "JPEG", quality=90) for image in images),
        *(encode(image.convert("RGB"), "JPEG", progressive=True) for image in images),
        *(encode(image.convert("RGB"), "WEBP") for image in images[:2]),
        *(encode(image, "TIFF", compression="tiff_lzw") for image in images[:2]),
        *(encode(image, "GIF") for image in images[:2]),
        *(encode(image, "BMP") for image in images[:1]),
    )


@cache
def corpus() -> tuple[Case, ...]:
    real = Image.open(io.BytesIO(photographs()[0])).convert("RGB")
    return (
        *truncations(encode(real, "JPEG"), 1),
        *truncations(encode(real, "JPEG", progressive=True), 4),
        *truncations(encode(real), 5),
        *truncations(encode(real, "WEBP"), 5),
        *bombs(),
        *polyglots(),
        *odd_pictures(),
        *no_pictures(),
        *forms(),
        *json_bodies(),
        *mutations(photographs(), 200),
    )


def test_every_hostile_body_is_answered_with_its_status_and_in_the_one_shape(server: FlatfixServer) -> None:
    assert wrong_answers(server.ports[0], corpus()) == []


def test_what_costs_more_than_its_pixels_is_refused_at_once(server: FlatfixServer) -> None:
    slowest = 0.0
    for case in bombs():
        begun = time.perf_counter()
        assert wrong_answers(server.ports[0], [case]) == []
        slowest = max(slowest, time.perf_counter() - begun)
    assert slowest < 3  # 0.3 s on a quiet machine; unbounded, some of these took hours


def test_mutations_of_tires_are_answered(server: FlatfixServer, tmp_path: Path) -> None:
    files = sorted(shared_pictures("tires_flat_full", tmp_path, 3).rglob("*.jpg"))
    assert wrong_answers(server.ports[0], mutations([file.read_bytes() for file in files], 200, seed=11)) == []


def test_the_same_bodies_are_refused_where_a_picture_is_explained(server: FlatfixServer) -> None:
    cases = [case for case in (*bombs(), *polyglots(), *no_pictures()) if 200 not in case.statuses]
    moved = [Case(case.name, case.body, case.statuses, case.content_type, "/explain") for case in cases]
    assert wrong_answers(server.ports[0], moved) == []


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_every_orientation_of_a_picture_has_the_answer_of_the_upright_one(server: FlatfixServer, format: str) -> None:
    # Blocks of one colour, which a JPEG of quality 100 keeps exactly, in whatever direction they are read.
    pixels = np.random.default_rng(3).integers(0, 256, (6, 10, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    plain = said_of(server, encode(pixels, format, **options))
    # How the pixels of an upright picture are stored, for each orientation (TIFF 6.0, page 36).
    upright = Image.fromarray(pixels)
    turns = Image.Transpose
    stored = {
        1: upright,
        2: upright.transpose(turns.FLIP_LEFT_RIGHT),
        3: upright.transpose(turns.ROTATE_180),
        4: upright.transpose(turns.FLIP_TOP_BOTTOM),
        5: upright.transpose(turns.TRANSPOSE),
        6: upright.transpose(turns.ROTATE_90),
        7: upright.transpose(turns.TRANSVERSE),
        8: upright.transpose(turns.ROTATE_270),
    }
    for orientation, image in stored.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        assert said_of(server, encode(image, format, exif=exif, **options)) == plain, orientation


def test_a_picture_among_others_keeps_its_answer_and_a_wrong_one_is_named(server: FlatfixServer) -> None:
    def form(*pictures: bytes) -> bytes:
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
        return b"".join(head + picture + b"\r\n" for picture in pictures) + b"--b--\r\n"

    others = [case.body for case in odd_pictures()[:6]]
    status, answer = server.post("/predict", form(*others, GOOD), "multipart/form-data; boundary=b")
    assert status == 200
    assert answer["predictions"][-1]["class"] == server.predict(GOOD)["predictions"][0]["class"]
    status, problem = server.post("/predict", form(GOOD, GOOD, GOOD[:300]), "multipart/form-data; boundary=b")
    assert status == 422
    assert "Picture 3 of 3" in problem["detail"]


def talk(port: int, sent: bytes, *, is_all: bool = True) -> bytes:
    """Send bytes, say that they are all there is, and return what comes back until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(sent)
        if is_all:
            connection.shutdown(socket.SHUT_WR)
        pieces = []
        try:
            while piece := connection.recv(65_536):
                pieces.append(piece)
        except ConnectionResetError:
            pass
        return b"".join(pieces)


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]


LONG = b"a" * 70_000
BROKEN_HTTP: dict[str, tuple[bytes, Sequence[int]]] = {
    "a length and chunks": (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET, [400]),
    "chunks and a length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + GET, [400]),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 40\r\n\r\nx" + GET, [400]),
    "two lengths in one": (POST + b"Content-Length: 1, 40\r\n\r\nx" + GET, [400]),
    "a signed length": (POST + b"Content-Length: +1\r\n\r\nx", [400]),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\nx", [400]),
    "a length in hex": (POST + b"Content-Length: 0x1\r\n\r\nx", [400]),
    "a length beyond 64 bits": (POST + b"Content-Length: 99999999999999999999\r\n\r\nx", [400]),
    "an unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", [400]),
    "chunked, but not in the end": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", [400]),
    "a chunk without a size": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", [400]),
    "a chunk beyond 64 bits": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n", [400]),
    "a chunk longer than it says": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxxx\r\n0\r\n\r\n", [400]),
    "a header over two lines": (GET + b"X: a\r\n b\r\n\r\n", [400]),
    "a space before the colon": (GET + b"Content-Length : 5\r\n\r\n", [400]),
    "a header with a NUL": (GET + b"X: a\0b\r\n\r\n", [400]),
    "a header without a name": (GET + b": a\r\n\r\n", [400]),
    "a bare CR": (GET + b"X: a\rY: b\r\n\r\n", [400]),
    "a bad method": (b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", [400]),
    "a made-up method": (b"FETCH / HTTP/1.1\r\nHost: a\r\n\r\n", [400]),
    "a method in small letters": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", [400]),
    "the tunnel of a proxy": (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", [400]),
    "a method that is not for this path": (b"DELETE /predict HTTP/1.1\r\nHost: a\r\n\r\n", [405]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "HTTP/9": (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", [400]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), [400]),
    "zeros": (bytes(1000), [400]),
    "a long path": (b"GET /" + LONG + b" HTTP/1.1\r\nHost: a\r\n\r\n", [431]),
    "a long header": (GET + b"X: " + LONG + b"\r\n\r\n", [431]),
    "a long name": (GET + LONG + b": x\r\n\r\n", [431]),
    "ten thousand headers": (GET + b"X: aaaaaaaaaa\r\n" * 10_000 + b"\r\n", [431]),
    "junk in the path": (b"GET /%zz%00%ff%c0%af..%2f..%2fetc HTTP/1.1\r\nHost: a\r\n\r\n", [404]),
    "a path that climbs": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", [404]),
    "bytes in the path": (b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", [400, 404]),
    "junk in the query": (b"GET /livez?" + b"%00&" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", [200]),
    "an answer that asks for a header": (GET + b"X-Request-ID: a\tb<script>\r\n\r\n", [200]),
    "a change to another protocol": (GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", [200]),
}


@pytest.mark.parametrize("name", BROKEN_HTTP)
def test_broken_http_has_one_answer_and_smuggles_no_second_request(server: FlatfixServer, name: str) -> None:
    sent, expected = BROKEN_HTTP[name]
    answer = talk(server.ports[0], sent)
    (status,) = statuses(answer)
    assert status in expected
    if status >= 400:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        assert json.loads(body)["status"] == status
        assert f"x-request-id: {json.loads(body)['request_id']}".encode() in head.lower()


def test_pipelined_requests_are_answered_in_their_order(server: FlatfixServer) -> None:
    bodies = [GOOD, GOOD[:500], b"text", GOOD] * 10
    sent = b"".join(
        POST + b"X-Request-ID: %d\r\nContent-Length: %d\r\n\r\n%b" % (number, len(body), body)
        for number, body in enumerate(bodies)
    )
    answers = talk(server.ports[0], sent + GET + b"Connection: close\r\n\r\n", is_all=False)
    assert statuses(answers) == [200, 422, 415, 200] * 10 + [200]
    assert [int(each) for each in re.findall(rb"(?i)^x-request-id: (\d{1,2})\r", answers, re.M)] == list(range(40))


def test_a_body_in_the_smallest_chunks_holds_up_nobody(server: FlatfixServer) -> None:
    chunks = b"1\r\nx\r\n" * 1_000_000
    sent = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunks + b"0\r\n\r\n"
    answers: list[bytes] = []
    client = threading.Thread(target=lambda: answers.append(talk(server.ports[0], sent, is_all=False)))
    client.start()
    seconds = []
    while client.is_alive():
        begun = time.perf_counter()
        assert server.get("/livez")[0] == 200
        seconds.append(time.perf_counter() - begun)
    assert statuses(answers[0]) in ([415], [408])  # no picture; or too slow, on a machine that is busy
    assert np.median(seconds) < 0.06  # 83 ms where each chunk was added to those that waited; 12 ms now


def test_a_chunked_body_that_is_too_large_is_told_so(server: FlatfixServer) -> None:
    chunks = (b"%x\r\n" % 10**6 + bytes(10**6) + b"\r\n") * 20
    answer = talk(server.ports[0], POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, is_all=False)
    assert statuses(answer) == [413]


def slow_clients(server: FlatfixServer, count: int) -> None:
    """Open connections that never finish what they begin, and predict beside them until they are thrown out."""
    beginnings = (b"", b"G", GET, GET + b"X: " + b"x" * 1000, POST + b"Content-Length: 100000\r\n\r\n\xff\xd8")
    with ExitStack() as stack:
        slow = []
        for number in range(count):
            connection = socket.create_connection(("127.0.0.1", server.ports[0]), 10)
            slow.append(stack.enter_context(connection))
            connection.sendall(beginnings[number % len(beginnings)])
            if number % 50 == 0:
                server.predict(GOOD)
        begun = time.perf_counter()
        server.predict(GOOD)
        assert time.perf_counter() - begun < 2
        for connection in slow:  # each ends within its time, with an answer or without
            connection.settimeout(10)
            try:
                while connection.recv(65_536):
                    pass
            except ConnectionResetError:
                pass
        assert time.perf_counter() - begun < 15


def test_slow_clients_are_thrown_out_and_hold_up_nobody(server: FlatfixServer) -> None:
    slow_clients(server, 400)


def vanishing_clients(server: FlatfixServer, count: int) -> None:
    """Go away in the middle of a head, a body and an answer, politely or not."""
    long = POST + b"Content-Length: %d\r\n\r\n" % len(GOOD)
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(GOOD)
    beginnings = (GET, long, long + GOOD[: len(GOOD) // 2], chunked + GOOD[:100], long + GOOD, GET + b"\r\n" + GET)
    for number in range(count):
        connection = socket.create_connection(("127.0.0.1", server.ports[0]), 10)
        connection.sendall(beginnings[number % len(beginnings)])
        if number % 2:  # reset at once
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def test_clients_that_vanish_leave_nothing_behind(server: FlatfixServer) -> None:
    num_files = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
    vanishing_clients(server, 600)
    wait_until(lambda: num_in_progress(server) == 0, 15, "the end of every request")
    wait_until(
        lambda: len(list(Path(f"/proc/{server.pid}/fd").iterdir())) <= num_files + 2, 15, "as many open files as before"
    )


def test_memory_does_not_grow_with_what_is_refused(server: FlatfixServer, tmp_path: Path) -> None:
    def everything() -> int:
        assert wrong_answers(fresh.ports[0], corpus()) == []
        for sent, _ in BROKEN_HTTP.values():
            talk(fresh.ports[0], sent)
        slow_clients(fresh, 100)
        vanishing_clients(fresh, 300)
        with ThreadPoolExecutor(8) as clients:
            assert {status for status, _ in clients.map(lambda _: fresh.post("/predict", large), range(16))} == {200}
        wait_until(lambda: num_in_progress(fresh) == 0, 15, "the end of every request")
        return resident_bytes(fresh.pid)

    large = blank_png(8000, 6000)
    with FlatfixServer(tmp_path, server.uri, *TIMES) as fresh:
        said_of(fresh, GOOD)
        at_rest = resident_bytes(fresh.pid)
        everything()
        first = everything()
        assert everything() <= first * 1.05
    # It grows by 21 MB; without `memory.keep_little` by 200, for what a large picture takes stays with its thread.
    assert first < at_rest + 100e6


def resident_bytes(pid: int) -> int:
    match = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert match
    return int(match[1]) * 1024
