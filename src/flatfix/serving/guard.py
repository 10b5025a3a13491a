"""What every request passes first: it lets in what the server can bear, and sees each request to its end."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flatfix.serving.problems import Problem, internal, overloaded
from flatfix.serving.settings import Limits
from flatfix.serving.visit import App, LateError, Receive, Scope, Send, Visit, max_body, too_large

if TYPE_CHECKING:
    from flatfix.serving.logs import AccessLog
    from flatfix.serving.metrics import Metrics

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
CLIENT_GONE = 499
"""Status that is counted for a request whose client did not wait for the answer; the word is nginx's."""

EXPLAIN = "/explain"
EXPLAIN_SHARE = 16  # one in so many requests at most: each takes fifty predictions, and waits behind all others
PROBES = frozenset(("/livez", "/readyz"))  # asked by address, by what watches over the server
OVERLOADED = overloaded()
UNKNOWN_HOST = Problem(
    421,
    "Unknown host",
    "The header Host names none of the hosts that this server answers for (option hosts).",
    reason="unknown_host",
)
WRONG_LENGTH = Problem(
    400,
    "Broken HTTP",
    "Content-Length is not one whole number.",
    reason="broken_http",
    headers={"Connection": "close"},
)

_HOST = re.compile(r"(\[[^]]*\]|[^][:]*)(?::[0-9]*)?")

logger = logging.getLogger("flatfix.serving")


class Guard:
    """Wrap an application (pure ASGI, around everything else) so that no client can hold or fill the server.

    Each request gets an id, in `scope["state"]["request_id"]` and in the header `X-Request-ID` of its answer: its own
    when it brings a harmless one. POST requests are admitted while there is room for them and their bodies, and refused
    at once otherwise, before a byte of the body is read. Bodies have a largest size and a longest time, requests a
    deadline. What the application raises becomes an answer, and a request whose client has gone is cancelled.

    The rest of a body that nobody reads is the protocol's matter: `Protocol` lets it run out so that the client can
    read the answer, within bounds.

    Args:
        app: What to guard; the paths of its `routes`, which have to be there already, become the label `handler`.
        limits: See `Limits`.
        hosts: Names that `Host` may have, in any case and with any port; empty for any. Probes are not asked.
        metrics: Counts requests.
        log: Gets a line a request.

    Attributes:
        num_waiting: POST requests in the building.
        num_explaining: those of them that ask for an explanation.
        num_bytes: of their bodies, as announced.
    """

    def __init__(self, app: App, *, limits: Limits, hosts: Sequence[str], metrics: Metrics, log: AccessLog) -> None:
        self.num_waiting = 0
        self.num_explaining = 0
        self.num_bytes = 0
        self._app = app
        self._limits = limits
        self._max_body = max_body(limits)
        self._max_explaining = max(1, limits.waiting // EXPLAIN_SHARE)
        self._max_bytes = limits.waiting_mb * 1_000_000
        self._hosts = frozenset(map(_plain, hosts))
        self._handlers = frozenset(_paths_of(getattr(app, "routes", ())))
        self._metrics = metrics
        self._log = log
        self._too_large = too_large(limits)
        self._body_late = Problem(
            408,
            "Body too slow",
            f"The body was not whole after {limits.body_s:g} s (limits.body_s).",
            reason="timeout_body",
            headers={"Connection": "close"},
        )
        self._too_late = Problem(
            504,
            "Deadline exceeded",
            f"There was no answer within {limits.deadline_s:g} s (limits.deadline_s). Try again later.",
            reason="deadline",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                state = scope.setdefault("state", {})  # which is where Protocol looks
                state.update(limits=self._limits, count_refusal=self.count_refusal)
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        visit = Visit(scope, receive, send, self._limits)
        handler = scope["path"] if scope["path"] in self._handlers else "unmatched"
        in_progress = self._metrics.in_progress.labels(handler)
        in_progress.inc()
        try:
            refusal = self._refusal(scope, visit)
            if refusal is not None:
                await visit.refuse(refusal)
            else:
                await self._admit(scope, visit)
        finally:
            in_progress.dec()
            self._count(scope, visit, handler, time.perf_counter() - start)

    def count_refusal(self, status: int, reason: str, request_id: str) -> None:
        """Count and log what `Protocol` refused, which never became a request."""
        self._metrics.rejected.labels(reason).inc()
        self._log.write("other", "unmatched", status, 0.0, request_id, reason)

    def _refusal(self, scope: Scope, visit: Visit) -> Problem | None:
        if self._hosts and scope["path"] not in PROBES and _host_of(visit.hosts) not in self._hosts:
            return UNKNOWN_HOST
        if visit.is_wrong:
            return WRONG_LENGTH
        if visit.length is not None and visit.length > self._max_body:
            return self._too_large
        if scope["method"] != "POST":
            return None
        if self.num_waiting >= self._limits.waiting or self.num_bytes + self._charge(visit) > self._max_bytes:
            return OVERLOADED
        if scope["path"] == EXPLAIN and self.num_explaining >= self._max_explaining:
            return OVERLOADED
        return None

    def _charge(self, visit: Visit) -> int:
        return self._max_body if visit.length is None else visit.length

    async def _admit(self, scope: Scope, visit: Visit) -> None:
        if scope["method"] != "POST":
            await self._see_through(scope, visit)
            return
        charge, is_explaining = self._charge(visit), scope["path"] == EXPLAIN
        self.num_waiting += 1
        self.num_explaining += is_explaining
        self.num_bytes += charge
        try:
            await self._see_through(scope, visit)
        finally:
            self.num_waiting -= 1
            self.num_explaining -= is_explaining
            self.num_bytes -= charge

    async def _see_through(self, scope: Scope, visit: Visit) -> None:
        problem: Problem | None = None
        try:
            await visit.run(self._app, scope)
        except Problem as raised:
            problem = raised
        except LateError:
            problem = self._too_late if visit.is_whole else self._body_late
        except Exception as error:
            if visit.is_gone:  # what a client left behind is no fault
                return
            logger.error("request_failed", exc_info=error, extra={"fields": {"request_id": visit.request_id}})
            problem = internal()
            if visit.is_started:  # the application answered with the same before it let the exception out
                visit.reason = problem.reason
        else:
            if not visit.is_started and not visit.is_gone:
                logger.error("request_not_answered", extra={"fields": {"request_id": visit.request_id}})
                problem = internal()
        if problem is not None and not visit.is_gone and not visit.is_started:
            await visit.refuse(problem)

    def _count(self, scope: Scope, visit: Visit, handler: str, seconds: float) -> None:
        state = scope["state"]
        method = scope["method"] if scope["method"] in METHODS else "other"
        status = CLIENT_GONE if visit.is_gone else visit.status or 500  # what uvicorn says when nobody did
        reason = None if visit.is_gone else visit.reason or state.get("reason")
        self._metrics.requests.labels(method, handler, str(status)).inc()
        self._metrics.duration.labels(method, handler).observe(seconds)
        if reason is not None:
            self._metrics.rejected.labels(reason).inc()
        self._log.write(method, handler, status, seconds, visit.request_id, reason, state.get("key"), visit.num_bytes)


def _paths_of(routes: Iterable[Any]) -> Iterable[str]:
    return (path for route in routes if isinstance(path := getattr(route, "path", None), str))


def _host_of(values: Sequence[bytes]) -> str | None:
    """Return the host that the one `Host` header names, without its port; None where there is none, or several."""
    if len(values) != 1:
        return None
    found = _HOST.fullmatch(values[0].decode("latin-1").strip())
    return _plain(found[1]) if found else None


def _plain(host: str) -> str:
    """Return the one form of a host that can be written in several: [::1] and ::1, with a dot at the end or without."""
    return host.lower().removesuffix(".").strip("[]")
