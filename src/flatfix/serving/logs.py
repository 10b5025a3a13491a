"""What the server says of itself: JSON lines on the standard error.

A module says `logging.getLogger("flatfix.serving").info("model_swapped", extra={"fields": {"version": "7"}})`, which
becomes `{"ts": "2026-11-22T12:00:00.123Z", "level": "info", "event": "model_swapped", "version": "7"}`. What uvicorn
and other libraries log comes in the same form, with their `logger`. No picture, key, query string, body or name of a
client's file belongs here.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flatfix.serving.spool import Spool

LOGGER = "flatfix.serving"

MAX_WAITING = 10_000  # lines, some megabytes: when nobody reads the standard error, later ones are lost
MAX_TEXT = 500  # characters of a text, so that a line fits into what a pipe takes in one piece
MAX_FRAMES = 15  # the innermost
PATIENCE_S = 0.1  # that an event waits for its line to be written,
IMPATIENCE_S = 60.0  # and does not after that was in vain
# By machines, each second: that all is well is no news.
ASKED_OFTEN = frozenset(("/health", "/livez", "/metrics", "/readyz"))
REFUSALS_S = 1.0  # between two lines about refusals for the same reason

_lines: Spool[bytes] | None = None  # between configure and close


def configure(level: str = "info") -> None:
    """Send all logging of this process through the lines of this module. Run uvicorn with `log_config=None`.

    Where the uvicorn command has set up logging of its own already, that is undone.

    Args:
        level: of the server's own events and uvicorn's; other libraries are heard from `warning` on.
    """
    global _lines
    if _lines is None:
        _lines = Spool(_write, MAX_WAITING, "log")
        atexit.register(close)
    root = logging.getLogger()
    if not any(isinstance(handler, _Handler) for handler in root.handlers):
        root.addHandler(_Handler())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # which says what AccessLog says
    for name in (LOGGER, "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
    logging.captureWarnings(True)


def close() -> None:
    """Write what waits, unless the standard error takes nothing for two seconds. Without this, the exit does it."""
    global _lines
    if _lines is not None:
        lines, _lines = _lines, None
        lines.close()


def moment(seconds: float) -> str:
    """Write a time, in seconds since 1970, as UTC in ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class AccessLog:
    """One line for each request, at level `info`."""

    def __init__(self) -> None:
        self._logger = logging.getLogger(LOGGER)
        self._next: dict[str, float] = {}  # when a refusal for this reason is said again
        self._num_left_out: dict[str, int] = {}

    def write(
        self,
        method: str,
        handler: str,
        status: int,
        seconds: float,
        request_id: str,
        reason: str | None = None,
        key_name: str | None = None,
        num_bytes: int = 0,
    ) -> None:
        """Say what a request was and how it ended, in the thread of the event loop.

        Of refusals for the same reason, one a second is said, with how many were left out before it.

        Args:
            method: of the request.
            handler: path of the route, never the URL as it was sent.
            status: of the answer.
            seconds: from the head of the request to the end of the answer.
            request_id: of the request.
            reason: why it was refused, one of `problems.REASONS`, or None.
            key_name: name of the key that it came with, or None.
            num_bytes: of its body.
        """
        if _lines is None or not self._logger.isEnabledFor(logging.INFO) or (handler in ASKED_OFTEN and status == 200):
            return
        fields: dict[str, Any] = {
            "request_id": request_id,
            "method": method,
            "handler": handler,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "bytes": num_bytes,
        }
        if key_name is not None:
            fields["key"] = key_name
        if reason is not None:
            now = time.monotonic()
            if now < self._next.get(reason, 0):
                self._num_left_out[reason] = self._num_left_out.get(reason, 0) + 1
                return
            self._next[reason] = now + REFUSALS_S
            fields |= {"reason": reason, "left_out": self._num_left_out.pop(reason, 0)}
        _lines.put(_line(time.time(), "info", "request", fields))


class _Handler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._waits_from = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if _lines is None:
            return
        try:
            fields: dict[str, Any] = {} if record.name == LOGGER else {"logger": record.name}
            fields |= getattr(record, "fields", {})
            if record.exc_info and record.exc_info[1] is not None:
                fields |= _told(record.exc_info[1])
            _lines.put(_line(record.created, record.levelname.lower(), record.getMessage().strip(), fields))
            # Events are rare, and often the last word of a process that a signal ends.
            if time.monotonic() >= self._waits_from and not _lines.flush(PATIENCE_S):
                self._waits_from = time.monotonic() + IMPATIENCE_S
        except Exception:
            self.handleError(record)


def _line(seconds: float, level: str, event: str, fields: Mapping[str, Any]) -> bytes:
    r"""Return one line: JSON escapes what would break it, `\n` and other control characters among them."""
    said = {"ts": moment(seconds), "level": level, "event": _short(event)} | {
        name: _short(value) for name, value in fields.items()
    }
    return _encode(said).encode() + b"\n"


def _short(value: Any) -> Any:
    return f"{value[:MAX_TEXT]}…" if isinstance(value, str) and len(value) > MAX_TEXT else value


def _as_text(value: Any) -> str:
    return str(_short(str(value)))


_encode = json.JSONEncoder(default=_as_text).encode  # json.dumps would make another encoder for each line


def _told(error: BaseException) -> dict[str, Any]:
    """Return what was raised and where: `file:line function` of the innermost frames, outermost first."""
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    places = [f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
    cause = error.__cause__ or error.__context__
    told: dict[str, Any] = {"exception": _one(error), "traceback": [_short(place) for place in places]}
    return told | ({"cause": _one(cause)} if cause else {})


def _one(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _write(lines: list[bytes]) -> None:
    """Write whole lines with few calls, none longer than what a pipe takes in one piece, as workers share it."""
    pieces = [b""]
    for line in lines:
        if len(pieces[-1]) + len(line) > select.PIPE_BUF:
            pieces.append(b"")
        pieces[-1] += line
    for piece in pieces:
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[os.write(2, rest) :]
        except OSError:  # there is nobody to tell: the disk behind it is full, or its reader has gone
            return
