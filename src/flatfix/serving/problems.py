"""The one shape of every error: Problem Details for HTTP APIs (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

REASONS = (
    "overloaded",
    "starting",
    "stopping",
    "too_large",
    "too_many_pixels",
    "too_many_files",
    "not_an_image",
    "corrupt_image",
    "invalid_request",
    "timeout_headers",
    "timeout_body",
    "deadline",
    "unknown_host",
    "no_key",
    "forbidden",
    "rate_limited",
    "not_found",
    "method_not_allowed",
    "broken_http",
    "headers_too_large",
    "not_kept",
    "internal",
)
"""Every word that the metric `rejected_total{reason}` and the `type` of a problem can hold.

`timeout_headers` is only counted: nobody is answered.
"""

CONTENT_TYPE = "application/problem+json"

_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Problem(Exception):
    """Stop a request, and say why to the client.

    Whatever runs below the guard may raise one. A problem whose text does not depend on the request can be made
    once and sent many times: all but the request id is serialized only once.

    Args:
        status: The HTTP status.
        title: What kind of problem it is: the same words each time.
        detail: What was wrong with this request, and what to do.
        reason: One of `REASONS`.
        headers: More headers of the answer, as `Retry-After`.

    Raises:
        ValueError: when `reason` is none of `REASONS`.
    """

    def __init__(
        self, status: int, title: str, detail: str, *, reason: str, headers: Mapping[str, str] | None = None
    ) -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason}: not a reason of a problem. Valid: {', '.join(REASONS)}.")
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.reason = reason
        self.headers = dict(headers or {})
        self._head: bytes | None = None
        self._encoded = [(name.lower().encode("ascii"), text.encode("latin-1")) for name, text in self.headers.items()]

    def body(self, request_id: str) -> bytes:
        """Return the JSON of the answer; `request_id` holds letters, digits, `.`, `_` and `-` only."""
        if self._head is None:
            members = {
                "type": f"/problems/{self.reason}",
                "title": self.title,
                "status": self.status,
                "detail": self.detail,
                "request_id": "",
            }
            self._head = json.dumps(members).encode().removesuffix(b'"}')
        return b'%b%b"}' % (self._head, request_id.encode("ascii"))

    async def send(self, send: _Send, request_id: str) -> None:
        """Answer a request by ASGI."""
        body = self.body(request_id)
        headers = [
            (b"content-type", CONTENT_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            *self._encoded,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def answer(request: Request, error: Exception) -> Response:
    """Turn what a route raised into the answer: the handler of an application for each of `HANDLERS`.

    It leaves the reason in `request.state.reason`, where the guard counts it.
    """
    problem = error if isinstance(error, Problem) else _problem_of(request, error)
    request.state.reason = problem.reason
    body = problem.body(request.state.request_id)
    return Response(body, problem.status, problem.headers, media_type=CONTENT_TYPE)


HANDLERS: dict[int | type[Exception], Any] = {
    Problem: answer,
    HTTPException: answer,
    RequestValidationError: answer,
    Exception: answer,
}
"""For `FastAPI(exception_handlers=HANDLERS)`: no answer of the application has another shape."""


def internal() -> Problem:
    """Return the problem for a fault of the server: it says nothing about what happened, the log does."""
    return Problem(
        500, "Internal error", "The server failed. Its log has the cause under this request id.", reason="internal"
    )


def overloaded() -> Problem:
    """Return the problem of a request, or of its pictures, for which there is no room now."""
    detail = "More is waiting than the server can answer in time. Try again later."
    return Problem(503, "Overloaded", detail, reason="overloaded", headers={"Retry-After": "1"})


def _problem_of(request: Request, error: Exception) -> Problem:
    if isinstance(error, RequestValidationError):
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:8])
        return Problem(422, "Invalid request", faults[:1000], reason="invalid_request")
    if not isinstance(error, HTTPException):
        return internal()
    if error.status_code == 404:
        detail = "There is nothing at this path. GET /docs shows what there is."
        return Problem(404, "Not found", detail, reason="not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.scope['path'][:80]} answers to {allowed or 'other methods'} only."
        return Problem(405, "Method not allowed", detail, reason="method_not_allowed", headers=error.headers)
    return Problem(
        error.status_code, "Invalid request", str(error.detail), reason="invalid_request", headers=error.headers
    )
