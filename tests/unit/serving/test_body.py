from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect, Request

from flatfix.serving.answers import Feedback
from flatfix.serving.body import MAX_FEEDBACK, feedback_of, pictures_of
from flatfix.serving.problems import Problem

FORM = "multipart/form-data; boundary=edge"
# What could be taken for a boundary, or for an end.
PICTURE = b"\xff\xd8\xff\r\n--edg\r\n--edge2\n--edge--\r\r\n\r\n--\x00" + bytes(range(256))


def part(name: str | None, data: bytes, more: bytes = b"") -> bytes:
    said = b"" if name is None else f'; name="{name}"; filename="a.jpg"'.encode()
    return b"--edge\r\nContent-Disposition: form-data" + said + b"\r\n" + more + b"\r\n" + data + b"\r\n"


def pictures(content_type: str | None, *pieces: bytes, max_files: int = 3, is_cut: bool = False) -> list[bytes]:
    def messages() -> Iterator[dict]:
        for piece in pieces:
            yield {"type": "http.request", "body": piece, "more_body": True}
        yield {"type": "http.disconnect"} if is_cut else {"type": "http.request", "body": b"", "more_body": False}

    waiting = messages()

    async def receive() -> dict:
        return next(waiting)

    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    return asyncio.run(pictures_of(request, max_files=max_files))


def refusal(*arguments, **options) -> Problem:
    with pytest.raises(Problem) as raised:
        pictures(*arguments, **options)
    return raised.value


@pytest.mark.parametrize("content_type", [None, "", "image/jpeg", "Image/X-Anything; q=1", "application/octet-stream"])
def test_a_body_of_no_form_is_one_picture(content_type):
    assert pictures(content_type, PICTURE, PICTURE) == [PICTURE + PICTURE]


def test_a_form_may_have_several_fields_of_either_name_and_they_keep_their_order():
    body = part("file", b"1") + part("files", PICTURE) + part("file", b"") + b"--edge--\r\n"

    assert pictures(FORM, body) == [b"1", PICTURE, b""]


def test_a_form_reads_the_same_wherever_its_pieces_are_cut():
    body = part("file", PICTURE) + part("files", b"\r\n") + b"--edge--\r\nepilogue"

    for cut in range(len(body)):
        assert pictures(FORM, body[:cut], body[cut:]) == [PICTURE, b"\r\n"]
    assert pictures(FORM, *(bytes([byte]) for byte in body)) == [PICTURE, b"\r\n"]


def test_a_form_needs_no_name_of_a_file_and_may_quote_its_boundary():
    body = b"--a b\r\ncontent-disposition: FORM-DATA; name=file\r\nX-Odd: \xff\r\n\r\nx\r\n--a b--"

    assert pictures('multipart/form-data; charset=utf-8; boundary="a b"', body) == [b"x"]


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
    [
        (FORM, part("image", b"x") + b"--edge--", "has a field 'image'.*form field `file`"),
        (FORM, part("file", b"x") + part("label", b"cat") + b"--edge--", "has a field 'label'"),
        (FORM, part("\x00<script>" + "x" * 500, b"x") + b"--edge--", r"'\\x00<script>x{51}'"),
        (FORM, part(None, b"x") + b"--edge--", "has no name"),
        (FORM, b"--edge--\r\n", "broken|no field"),
        (FORM, b"", "ends before its last boundary"),
        (FORM, part("file", b"x"), "ends before its last boundary"),
        (FORM, part("file", b"x")[:40], "ends before its last boundary"),
        (FORM, b"\xff\xd8 no form at all", "broken"),
        (FORM, part("file", b"x", more=b"X: y\r\n" * 99), "broken"),
        (FORM, part("file", b"x", more=b"X: " + b"y" * 9999 + b"\r\n"), "broken"),
        ("multipart/form-data", b"x", "no boundary"),
        ("multipart/form-data; boundary=", b"x", "no boundary"),
        ("multipart/form-data; boundary=" + "x" * 999, b"x", "broken"),
        (None, b"", "body is empty"),
        ("image/jpeg", b"", "body is empty"),
    ],
)
def test_anything_else_is_invalid_and_says_what_is_expected(content_type, body, said):
    problem = refusal(content_type, body)

    assert (problem.status, problem.reason) == (422, "invalid_request")
    assert re.search(said, problem.detail)


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "multipart/mixed", "jpeg"])
def test_a_body_of_another_type_is_no_picture(content_type):
    problem = refusal(content_type, b"x")

    assert (problem.status, problem.reason) == (415, "not_an_image")
    assert content_type in problem.detail and "image/jpeg" in problem.detail


def test_more_pictures_than_allowed_are_refused_before_the_rest_is_read():
    four = part("file", b"x") * 4

    problem = refusal(FORM, four, is_cut=True)

    assert (problem.status, problem.reason) == (413, "too_many_files")
    assert "3 pictures (limits.files)" in problem.detail
    alone = refusal(FORM, four, max_files=1).detail
    assert "one picture" in alone and "limits.files" not in alone  # which does not bound what one is explained by


def test_a_client_that_leaves_is_no_broken_form():
    with pytest.raises(ClientDisconnect):
        pictures(FORM, part("file", b"x"), is_cut=True)


@pytest.mark.parametrize("pattern", [b"\r", b"\r\n", b"\r\n--edg", b"\r\n--edge", b"-", b"\r\n--edge\r\n\r", b"\x00"])
@pytest.mark.parametrize("where", ["before", "header", "data"])
def test_hostile_forms_take_no_longer_than_pictures_of_their_size(pattern, where):
    filling = pattern * (1_000_000 // len(pattern))
    body = {"before": b"", "header": b"--edge\r\nX: ", "data": part("file", b"")[:-2]}[where] + filling
    pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)]

    start = time.thread_time()
    refusal(FORM, *pieces)

    assert time.thread_time() - start < 1  # a megabyte; 20 ms on a quiet machine


@pytest.mark.parametrize("pattern", [";", '";', "=", '"\\', ";a*=", " "])
def test_a_hostile_content_type_takes_no_time(pattern):
    start = time.thread_time()
    refusal("multipart/form-data" + pattern * 20_000, b"")

    assert time.thread_time() - start < 1


def feedback(body: bytes, content_type: str = "application/json") -> Feedback:
    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", content_type.encode())]
    return asyncio.run(feedback_of(Request({"type": "http", "method": "POST", "headers": headers}, receive)))


def test_feedback_is_json_of_its_form():
    assert feedback(b'{"request_id": "a", "label": "ok"}') == Feedback(request_id="a", label="ok", index=0)
    assert feedback(b'{"request_id": "a", "label": "ok", "index": 3}', "application/json; charset=utf-8").index == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "EOF"),
        (b"[" * 8000, "recursion"),
        (b'{"request_id": "a", "label": "\\ud800"}', "hex escape"),
        (b'{"request_id": "a", "label": "ok", "index": NaN}', "integer"),
        (b'{"request_id": "a", "label": "ok", "index": false}', "integer"),
        (b'{"request_id": "a", "label": "ok", "index": %b}' % (b"9" * 4000), "less than 10000"),
        (b'{"request_id": "../a", "label": "ok"}', "match pattern"),
        (b'{"request_id": "a", "label": "ok", "admin": 1}', "not permitted"),
    ],
)
def test_feedback_that_says_something_else_is_invalid(body, said):
    with pytest.raises(RequestValidationError) as raised:
        feedback(body)
    assert any(said in fault["msg"] for fault in raised.value.errors())


def test_feedback_of_another_type_or_of_many_bytes_is_refused_before_it_is_parsed():
    with pytest.raises(Problem, match="application/json"):
        feedback(b'{"request_id": "a", "label": "ok"}', "text/plain")
    fields = json.dumps({f"x{number}": 1 for number in range(100_000)}).encode()
    start = time.thread_time()
    with pytest.raises(Problem) as raised:
        feedback(fields)
    assert (raised.value.status, raised.value.reason) == (413, "too_large")
    with pytest.raises(RequestValidationError):
        feedback(fields[: MAX_FEEDBACK - 10] + b'": 1}')
    assert time.thread_time() - start < 1  # three seconds for the hundred thousand, on the event loop
