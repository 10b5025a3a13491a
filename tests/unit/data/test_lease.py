from __future__ import annotations

import threading
from collections.abc import Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flatfix.data.lease import Lease
from tests.helpers.s3_server import use_aws


@pytest.fixture(params=[False, True], ids=["knows no condition", "knows If-None-Match"])
def forgetful_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that keeps objects and passes over conditions, or over If-Match, as some that speak S3 do."""
    held: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if request.param and self.headers["If-None-Match"] and self.path in held:
                return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>", b"")
            held[self.path] = content
            self.answer(200, b"", content)

        def do_GET(self) -> None:
            content = held.get(self.path)
            self.answer(200 if content is not None else 404, content or b"", content or b"")

        def answer(self, status: int, body: bytes, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", self.date_time_string())
            self.send_header("ETag", f'"{md5(content).hexdigest()}"')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_server_that_passes_over_conditions_keeps_nobody_out_and_it_is_said(
    forgetful_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_aws(monkeypatch, AWS_ENDPOINT_URL=forgetful_server, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    for _ in range(2):  # the first leaves nothing that the second would wait for
        lease = Lease("s3://bucket/v1/.lock")
        lease.take()
        lease.confirm()
        assert "s3://bucket/v1/.lock: this server has no conditional writes" in capsys.readouterr().out
    lease.release()
