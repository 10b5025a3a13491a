from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel

from flatfix.serving.guard import Guard
from flatfix.serving.logs import AccessLog
from flatfix.serving.metrics import Metrics
from flatfix.serving.problems import HANDLERS, Problem
from flatfix.serving.settings import Limits

LIMITS = Limits(
    waiting=2,
    waiting_mb=2,
    body_mb=1,
    megapixels=50,
    files=32,
    deadline_s=0.1,
    body_s=0.05,
    headers_s=1,
    idle_s=1,
    drain_s=1,
)
MB = 1_000_000
CHUNKED = ("transfer-encoding", "chunked")


class Call:
    """One request to an ASGI application, without a server."""

    def __init__(
        self, method: str = "POST", path: str = "/predict", headers: Sequence[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        if body and not {"content-length", "transfer-encoding"} & {name for name, _ in headers}:
            headers = [*headers, ("content-length", str(len(body)))]
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": encoded,
            "state": {},
        }
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.num_received = 0
        self.sent: list[Any] = []
        self.say(body, more=False)

    def say(self, body: bytes, more: bool) -> Call:
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> dict[str, Any]:
        message = await self.messages.get()
        self.num_received += 1
        return message

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def to(self, app: Callable[..., Any]) -> Call:
        await asyncio.wait_for(app(self.scope, self.receive, self.send), 5)
        return self

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self) -> dict[str, str]:
        assert len({name for name, _ in self.sent[0]["headers"]}) == len(self.sent[0]["headers"])
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        found = json.loads(b"".join(message["body"] for message in self.sent[1:]))
        assert found["status"] == self.status and found["request_id"] == self.headers["x-request-id"]
        return found


def sending(*pieces: bytes, headers: Sequence[tuple[str, str]], more: bool = True) -> Call:
    """Return a request whose body comes in pieces, of which the last is not the end unless `more` is false."""
    call = Call(headers=headers)
    call.messages = asyncio.Queue()
    for number, piece in enumerate(pieces, start=1):
        call.say(piece, more or number < len(pieces))
    return call


async def read(receive: Callable[..., Any]) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("gone")
        body += message["body"]
        if not message["more_body"]:
            return body


async def reply(send: Callable[..., Any], body: bytes = b"done") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await reply(send, await read(receive))


class Hall:
    """An application in which requests wait, and which notes how each left."""

    def __init__(self) -> None:
        self.entered = asyncio.Semaphore(0)
        self.doors = asyncio.Event()
        self.left: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await read(receive)
            self.entered.release()
            await self.doors.wait()
        except BaseException as error:
            self.left.append(type(error).__name__)
            raise
        await reply(send)
        self.left.append("answered")


def guarded(app: Any = echo, hosts: Sequence[str] = (), limits: Limits = LIMITS) -> Guard:
    return Guard(app, limits=limits, hosts=hosts, metrics=Metrics(), log=AccessLog())


def counted(guard: Guard) -> dict[str, float]:
    lines = guard._metrics.render()[0].decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}


def assert_empty(guard: Guard) -> None:
    assert (guard.num_waiting, guard.num_explaining, guard.num_bytes) == (0, 0, 0)
    assert not any(value for name, value in counted(guard).items() if name.startswith("http_requests_in_progress"))


def test_an_answer_passes_and_bears_a_request_id():
    call = asyncio.run(Call(body=b"picture").to(guarded()))

    assert (call.status, call.sent[1]["body"]) == (200, b"picture")
    assert call.headers["x-request-id"] == call.scope["state"]["request_id"]


@pytest.mark.parametrize("own", ["a", "A.b_c-9", "x" * 64])
def test_a_harmless_request_id_of_the_client_is_kept(own):
    assert asyncio.run(Call(headers=[("x-request-id", own)]).to(guarded())).headers["x-request-id"] == own


@pytest.mark.parametrize("own", ["", "x" * 65, "a b", "a\nset-cookie: b", "a\n", 'a"', "ä", "<b>"])
def test_any_other_request_id_is_replaced(own):
    found = asyncio.run(Call(headers=[("x-request-id", own)]).to(guarded())).headers["x-request-id"]

    assert len(found) == 32 and int(found, 16)


def test_a_full_house_refuses_at_once_without_reading_and_lets_others_in_later():
    async def run() -> None:
        hall = Hall()
        guard = guarded(hall)
        inside = [asyncio.create_task(Call().to(guard)) for _ in range(2)]
        for _ in inside:
            await hall.entered.acquire()

        refused = await Call(body=b"x" * 10).to(guard)
        assert (refused.status, refused.problem["type"]) == (503, "/problems/overloaded")
        assert refused.headers["retry-after"] == "1" and refused.num_received == 0

        hall.doors.set()
        assert [call.status for call in await asyncio.gather(*inside)] == [200, 200]
        assert (await Call().to(guard)).status == 200
        assert_empty(guard)
        assert counted(guard)['rejected_total{reason="overloaded"}'] == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [([("content-length", "500000")], True), ([CHUNKED], True), ([("content-length", "400000")], False)],
)
def test_bytes_are_admitted_as_announced_and_a_chunked_body_as_the_largest(headers, is_refused):
    async def run() -> None:
        hall = Hall()
        guard = guarded(hall, limits=replace(LIMITS, waiting_mb=1))
        first = asyncio.create_task(Call(body=b"x" * 600_000).to(guard))
        await hall.entered.acquire()

        second = asyncio.create_task(sending(b"x", headers=headers, more=False).to(guard))
        if is_refused:
            assert (await second).problem["type"] == "/problems/overloaded"
        else:
            await hall.entered.acquire()
            assert (guard.num_waiting, guard.num_bytes) == (2, MB)
        hall.doors.set()

        assert (await first).status == 200
        await second
        assert_empty(guard)

    asyncio.run(run())


def test_explanations_leave_the_house_to_predictions():
    async def run() -> None:
        hall = Hall()
        guard = guarded(hall, limits=replace(LIMITS, waiting=32, deadline_s=5))
        inside = [asyncio.create_task(Call(path="/explain").to(guard)) for _ in range(2)]
        for _ in inside:
            await hall.entered.acquire()

        refused = await Call(path="/explain", body=b"x").to(guard)
        assert (refused.problem["type"], refused.num_received) == ("/problems/overloaded", 0)
        inside.append(asyncio.create_task(Call().to(guard)))
        await hall.entered.acquire()

        hall.doors.set()
        assert [call.status for call in await asyncio.gather(*inside)] == [200, 200, 200]
        assert (await Call(path="/explain").to(guard)).status == 200
        assert_empty(guard)

    asyncio.run(run())


def test_a_small_house_explains_too():
    assert asyncio.run(Call(path="/explain").to(guarded())).status == 200


def test_a_get_is_answered_in_a_full_house():
    async def run() -> None:
        hall = Hall()
        guard = guarded(hall)
        inside = [asyncio.create_task(Call().to(guard)) for _ in range(2)]
        for _ in inside:
            await hall.entered.acquire()
        hall.doors.set()

        assert (await Call("GET", "/health").to(guard)).status == 200
        await asyncio.gather(*inside)

    asyncio.run(run())


def test_a_body_that_is_announced_as_too_large_is_refused_unread():
    call = asyncio.run(Call(headers=[("content-length", str(MB + 1))]).to(guard := guarded()))

    assert (call.status, call.problem["type"], call.num_received) == (413, "/problems/too_large", 0)
    assert_empty(guard)


@pytest.mark.parametrize("lengths", [["-1"], ["ten"], [""], ["+5"], ["1", "2"], ["9" * 19], ["1, 1"], ["0x5"], ["²"]])
def test_a_content_length_that_is_no_number_is_refused_unread(lengths):
    call = asyncio.run(Call(headers=[("content-length", length) for length in lengths]).to(guard := guarded()))

    assert (call.status, call.num_received, call.headers["connection"]) == (400, 0, "close")
    assert_empty(guard)


def test_a_body_of_the_largest_size_passes_and_one_byte_more_does_not():
    half = b"x" * (MB // 2)

    async def run() -> None:
        guard = guarded()
        whole = await sending(half, half, headers=[CHUNKED], more=False).to(guard)
        larger = await sending(half, half, b"x", headers=[CHUNKED]).to(guard)

        assert (whole.status, len(whole.sent[1]["body"])) == (200, MB)
        assert (larger.status, larger.problem["type"]) == (413, "/problems/too_large")
        assert_empty(guard)

    asyncio.run(run())


def test_a_body_that_is_longer_than_announced_is_refused_when_it_is_too_large():
    call = asyncio.run(sending(b"x" * MB, b"x", headers=[("content-length", "5")]).to(guarded()))

    assert call.status == 413


def test_a_slow_body_is_told_so_after_its_time():
    call = asyncio.run(sending(b"x", headers=[("content-length", "9")]).to(guard := guarded()))

    assert (call.status, call.problem["type"], call.headers["connection"]) == (408, "/problems/timeout_body", "close")
    assert_empty(guard)


def test_a_slow_answer_is_told_so_after_the_deadline_and_cancelled():
    async def run() -> None:
        hall = Hall()
        call = await Call(body=b"x").to(guard := guarded(hall))

        assert (call.status, call.problem["type"]) == (504, "/problems/deadline")
        assert hall.left == ["CancelledError"]
        assert_empty(guard)

    asyncio.run(run())


def test_a_whole_body_has_until_the_deadline_even_if_that_is_later_than_the_time_of_bodies():
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)
        await asyncio.sleep(0.07)  # more than body_s, less than deadline_s
        await reply(send)

    assert asyncio.run(Call(body=b"x").to(guarded(slow))).status == 200


def test_an_error_of_time_in_the_application_is_its_own_fault():
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise TimeoutError("of a database")

    assert asyncio.run(Call().to(guarded(failing))).status == 500


HOSTS = ["api.example.org", "[::1]", "fe80::1", "Example.net.", "127.0.0.1"]


@pytest.mark.parametrize(
    "host",
    [
        "api.example.org",
        "API.Example.ORG:8000",
        "[::1]",
        "[::1]:80",
        "127.0.0.1:1",
        "api.example.org:",
        "api.example.org.:80",
        "example.net",
        "[FE80::1]:80",
    ],
)
def test_a_known_host_is_answered_with_any_port_and_in_any_case(host):
    assert asyncio.run(Call(headers=[("host", host)]).to(guarded(hosts=HOSTS))).status == 200


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["evil.example"],
        ["api.example.org.evil.example"],
        ["api.example.org@evil.example"],
        ["api.example.org:80@evil"],
        ["::1"],
        ["[::2]:80"],
        [":80"],
        ["."],
        ["::1:80"],
        ["[::1]evil"],
        ["127.0.0.1:\xb2"],
        ["api.example.org", "api.example.org"],
    ],
)
def test_an_unknown_host_is_refused_unread(hosts):
    call = asyncio.run(Call(headers=[("host", host) for host in hosts]).to(guard := guarded(hosts=HOSTS)))

    assert (call.status, call.problem["type"], call.num_received) == (421, "/problems/unknown_host", 0)
    assert_empty(guard)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_a_probe_may_come_by_address(path):
    assert asyncio.run(Call("GET", path, [("host", "10.0.0.7:8000")]).to(guarded(hosts=HOSTS))).status == 200


def test_any_host_is_answered_where_none_is_named():
    assert asyncio.run(Call(headers=[("host", "anything")]).to(guarded())).status == 200


def test_a_client_that_leaves_while_it_waits_is_cancelled_and_counted():
    async def run() -> None:
        hall = Hall()
        guard = guarded(hall)
        call = Call(body=b"x")
        task = asyncio.create_task(call.to(guard))
        await hall.entered.acquire()
        call.leave()
        await task

        assert (hall.left, call.sent) == (["CancelledError"], [])
        assert_empty(guard)
        assert counted(guard)['http_requests_total{handler="unmatched",method="POST",status="499"}'] == 1

    asyncio.run(run())


def test_a_task_whose_client_left_can_go_on():
    async def run() -> None:
        hall = Hall()
        call = Call()

        async def serve() -> str:
            await guarded(hall)(call.scope, call.receive, call.send)
            await asyncio.sleep(0)  # would raise were the cancellation still pending
            return "went on"

        task = asyncio.create_task(serve())
        await hall.entered.acquire()
        call.leave()

        assert await task == "went on" and task.cancelling() == 0

    asyncio.run(run())


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind():
    async def run() -> None:
        guard = guarded()
        call = sending(b"x", headers=[("content-length", "5")])
        call.leave()
        await call.to(guard)

        assert call.sent == []
        assert_empty(guard)
        assert not any(name.startswith("rejected_total") for name in counted(guard))

    asyncio.run(run())


def test_a_server_that_cancels_a_request_is_obeyed():
    async def run() -> None:
        hall = Hall()
        guard = guarded(hall)
        task = asyncio.create_task(Call().to(guard))
        await hall.entered.acquire()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert_empty(guard)

    asyncio.run(run())


def test_an_application_learns_that_its_client_left():
    learnt: list[str] = []

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)
        await reply(send)
        learnt.append((await receive())["type"])

    call = Call()
    call.leave()
    asyncio.run(call.to(guarded(listening)))

    assert (call.status, learnt) == (200, ["http.disconnect"])


async def failing(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("the password is hunter2")


async def silent(scope: Any, receive: Any, send: Any) -> None:
    await read(receive)


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    raise Problem(503, "Starting", "No model yet.", reason="starting", headers={"Retry-After": "5"})


@pytest.mark.parametrize("app", [failing, silent])
def test_a_fault_of_the_server_is_a_500_that_tells_nothing(app):
    call = asyncio.run(Call(body=b"x").to(guard := guarded(app)))

    assert (call.status, call.problem["type"]) == (500, "/problems/internal")
    assert "hunter2" not in str(call.sent)
    assert_empty(guard)


def test_a_problem_from_below_is_sent_and_counted_by_its_reason():
    call = asyncio.run(Call().to(guard := guarded(refusing)))

    assert (call.status, call.headers["retry-after"], call.problem["detail"]) == (503, "5", "No model yet.")
    assert counted(guard)['rejected_total{reason="starting"}'] == 1
    assert_empty(guard)


def test_a_failure_after_the_answer_began_is_not_answered_twice():
    async def breaking(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    call = asyncio.run(Call().to(guard := guarded(breaking)))

    assert len(call.sent) == 1
    assert counted(guard)['rejected_total{reason="internal"}'] == 1
    assert_empty(guard)


@pytest.mark.parametrize(("app", "is_closed"), [(refusing, True), (echo, False)])
def test_a_client_that_waits_to_be_told_to_send_its_body_is_let_go_where_it_was_not(app, is_closed):
    call = asyncio.run(Call(headers=[("expect", "100-continue")], body=b"x").to(guarded(app)))

    assert (call.headers.get("connection") == "close") == is_closed


class Note(BaseModel):
    number: int


def application() -> FastAPI:
    app = FastAPI(exception_handlers=HANDLERS)

    @app.get("/fine")
    async def fine() -> str:
        return "fine"

    @app.post("/note")
    async def note(note: Note) -> int:
        return note.number

    @app.post("/read")
    async def read_body(request: Request) -> int:
        request.state.key = "robot"
        return len(await request.body())

    @app.post("/refuse")
    async def refuse() -> None:
        raise Problem(415, "Not a picture", "No.", reason="not_an_image")

    @app.post("/fail")
    async def fail() -> None:
        raise RuntimeError("hunter2")

    return app


@pytest.mark.parametrize(
    ("call", "status", "reason"),
    [
        (("GET", "/nowhere"), 404, "not_found"),
        (("POST", "/fine"), 405, "method_not_allowed"),
        (("BREW", "/fine"), 405, "method_not_allowed"),
        (("POST", "/refuse"), 415, "not_an_image"),
        (("POST", "/fail"), 500, "internal"),
        (("POST", "/note", [("content-type", "application/json")], b"{"), 422, "invalid_request"),
        (("POST", "/note", [("content-type", "application/json")], b'{"number": "x"}'), 422, "invalid_request"),
        (("POST", "/read", [CHUNKED], b"x" * (MB + 1)), 413, "too_large"),
    ],
)
def test_every_error_of_the_application_has_the_one_shape_and_is_counted_once(call, status, reason):
    found = asyncio.run(Call(*call).to(guard := guarded(application())))

    assert (found.status, found.problem["type"]) == (status, f"/problems/{reason}")
    assert "hunter2" not in str(found.sent)
    assert counted(guard)[f'rejected_total{{reason="{reason}"}}'] == 1
    assert_empty(guard)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault_of_the_application():
    call = sending(b"x", headers=[("content-length", "5")])
    call.scope["path"] = "/read"
    call.leave()
    asyncio.run(call.to(guard := guarded(application())))

    series = counted(guard)
    assert series['http_requests_total{handler="/read",method="POST",status="499"}'] == 1
    assert not any(name.startswith("rejected_total") for name in series)
    assert_empty(guard)


def test_labels_are_bounded_by_the_routes_and_the_known_methods():
    async def run() -> None:
        guard = guarded(application())
        for method in ("GET", "BREW", "x" * 999):
            for path in ("/fine", "/\x00", "/fine/../fine", "/ü" * 99):
                await Call(method, path).to(guard)

        labels = {name for name in counted(guard) if name.startswith("http_requests_total")}
        assert labels == {
            'http_requests_total{handler="/fine",method="GET",status="200"}',
            'http_requests_total{handler="/fine",method="other",status="405"}',
            'http_requests_total{handler="unmatched",method="GET",status="404"}',
            'http_requests_total{handler="unmatched",method="other",status="404"}',
        }

    asyncio.run(run())


def test_what_is_no_request_passes_and_the_server_learns_the_limits():
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    scope: dict[str, Any] = {"type": "lifespan", "state": {}}
    asyncio.run(guarded(app)(scope, None, None))  # type: ignore[arg-type]

    assert seen == ["lifespan"] and scope["state"]["limits"] == LIMITS
