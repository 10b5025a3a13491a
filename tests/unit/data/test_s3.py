from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flatfix.data import s3
from flatfix.errors import UserError
from tests.helpers.s3_server import use_aws

CONTENT = bytes(range(256)) * 40


@contextmanager
def breaking_server(num_broken: int) -> Iterator[tuple[str, list[str]]]:
    """Serve `CONTENT` for every path, the first answers cut off in their middle; yield the address and the requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:5_000] if len(requests) <= num_broken else CONTENT)
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()


def use_server(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    use_aws(monkeypatch, AWS_ENDPOINT_URL=address, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")


def test_a_body_that_breaks_off_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with breaking_server(num_broken=2) as (address, requests):
        use_server(monkeypatch, address)
        assert s3.read("s3://bucket/a/b c.png") == CONTENT
    assert requests == ["/bucket/a/b%20c.png"] * 3


def test_a_body_that_always_breaks_off_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with breaking_server(num_broken=100) as (address, requests):
        use_server(monkeypatch, address)
        with pytest.raises(UserError, match=r"s3://bucket/a\.png: .*AWS_ENDPOINT_URL"):
            s3.read("s3://bucket/a.png")
    assert len(requests) == s3.ATTEMPTS


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "Unable to locate credentials. S3 is reached as AWS_ENDPOINT_URL, AWS_PROFILE"),
        ({"AWS_PROFILE": "line7"}, r"The config profile \(line7\) could not be found"),
        (
            {"AWS_ENDPOINT_URL": "127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
            r"Invalid endpoint: 127\.0\.0\.1:9",
        ),
    ],
)
@pytest.mark.parametrize("ask", [s3.read, lambda uri: list(s3.list_uris(uri))], ids=["read", "list"])
def test_a_machine_that_is_not_set_up_is_told_so(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], object], variables: dict[str, str], message: str
) -> None:
    use_aws(monkeypatch, **variables)
    with pytest.raises(UserError, match=f"^s3://bucket/key: {message}"):
        ask("s3://bucket/key")


def test_a_process_has_one_client_and_its_fork_another(monkeypatch: pytest.MonkeyPatch) -> None:
    use_server(monkeypatch, "http://127.0.0.1:9")
    code = """
import os
from flatfix.data import s3
client = s3.client()
assert s3.client() is client
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(7 if s3.client() is not client else 1)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 7


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/a/b.png", ("bucket", "a/b.png")),
        ("s3://bucket/a?b#c%20d", ("bucket", "a?b#c%20d")),
    ],
)
def test_an_address_is_split_at_its_first_slash_alone(uri: str, parts: tuple[str, str]) -> None:
    assert s3.split(uri) == parts
