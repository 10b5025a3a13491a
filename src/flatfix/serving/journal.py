"""What was answered and what was true, kept as JSON lines for later: no picture ever."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flatfix.files import locked
from flatfix.serving.logs import moment
from flatfix.serving.metrics import Metrics
from flatfix.serving.spool import Spool

MAX_WAITING = 10_000  # requests, some megabytes: seconds of a disk that hangs
PARTS = 8  # a file of a day that has become this part of the whole makes room for another
# Of the journal's own files: kind, day, and the number of one that was set aside.
NAME = re.compile(r"(answers|feedback)-(\d{4}-\d\d-\d\d)(?:\.(\d+))?\.jsonl")
COMPLAINTS_S = 60.0  # between two log lines about answers that were not kept

# Seconds, request id, model version, and of each picture the class, the decision and the probability.
Answered = tuple[float, str, str, list[tuple[str, str, float]]]

_log = logging.getLogger("flatfix.serving")


class Journal:
    """Keeps answers and feedback in a folder that several workers share.

    There is a file a UTC day and kind, `answers-2026-11-22.jsonl` and `feedback-2026-11-22.jsonl`. One that has become
    large is set aside under a name with a number, `answers-2026-11-22.0001.jsonl`. Where all of them would be larger
    than is allowed the oldest answers go, and then the oldest feedback, which people gave and nobody can give again.
    """

    def __init__(self, folder: Path, max_mb: int, metrics: Metrics) -> None:
        """Make the folder when it is missing.

        Args:
            folder: of the files.
            max_mb: megabytes that all files may hold.
            metrics: counts what was dropped.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_mb * 1_000_000
        self._metrics = metrics
        self._next_complaint = 0.0
        self._num_dropped = 0  # since the last complaint
        self._complaining = threading.Lock()
        self._spool: Spool[Answered] = Spool(self._keep, MAX_WAITING, "journal")

    def answered(self, request_id: str, model_version: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the answer of a request to write it soon. Never waits, and never fails.

        What there is no room for, in memory or on the disk, is dropped and counted.

        Args:
            request_id: of the request.
            model_version: that answered.
            rows: one a picture, of which `class`, `decision` and `probability` are kept.
        """
        kept = [(row["class"], row["decision"], row["probability"]) for row in rows]
        if not self._spool.put((time.time(), request_id, model_version, kept)):
            self._drop(len(rows), "the disk is slow")

    def feedback(self, request_id: str, index: int, label: str, live_version: str | None) -> None:
        """Write the true class of a picture now.

        Args:
            request_id: that the picture was answered under.
            index: of the picture in that request.
            label: its true class.
            live_version: of the model that answers now, which need not be the one that answered then; None for none.

        Raises:
            OSError: when there is no room.
        """
        now = time.time()
        fields = {"request_id": request_id, "time": moment(now), "live_version": live_version}
        self._append("feedback", _day(now), _line(fields | {"index": index, "label": label}))
        self._metrics.feedback.inc()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the answers of before are written or dropped; return whether they are."""
        return self._spool.flush(timeout_s)

    def close(self, timeout_s: float = 2) -> None:
        """Write what waits and end the thread, unless that takes longer."""
        self._spool.close(timeout_s)

    def _keep(self, requests: list[Answered]) -> None:
        days: dict[str, list[bytes]] = {}
        for seconds, request_id, model_version, kept in requests:
            request = {"request_id": request_id, "time": moment(seconds), "model_version": model_version}
            lines = days.setdefault(_day(seconds), [])
            for index, (label, decision, probability) in enumerate(kept):
                picture = {"index": index, "class": label, "decision": decision, "probability": probability}
                lines.append(_line(request | picture))
        for day, lines in days.items():
            try:
                self._append("answers", day, b"".join(lines))
            except OSError as error:
                self._drop(len(lines), str(error.strerror))

    def _append(self, kind: str, day: str, lines: bytes) -> None:
        """Write whole lines or none.

        Raises:
            OSError: when there is no room for them.
        """
        path = self._folder / f"{kind}-{day}.jsonl"
        with locked(self._folder / ".lock"):  # as another worker may be at it, or set the file aside
            is_new = not path.exists()
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                before = os.fstat(file).st_size
                try:
                    _write_all(file, lines)
                except OSError:
                    os.ftruncate(file, before)  # a part of a line would spoil the next one
                    raise
            finally:
                os.close(file)
            is_full = before + len(lines) > self._max_bytes / PARTS
            with suppress(OSError):  # the lines are kept; the next file that is full or new tries again
                if is_full:
                    self._set_aside(path)
                if is_new or is_full:
                    self._make_room()

    def _make_room(self) -> None:
        """Remove the oldest files until another part of the whole has room."""
        files = sorted(self._files(), key=_age)
        sizes = [file.stat().st_size for file in files]
        total = sum(sizes)
        for file, size in zip(files, sizes, strict=True):
            if total <= self._max_bytes * (PARTS - 2) / PARTS:  # one of answers and one of feedback are being filled
                return
            file.unlink()
            total -= size

    def _set_aside(self, path: Path) -> None:
        number = 1 + max((_age(old)[-1] for old in self._files() if old.name.startswith(path.stem)), default=0)
        path.rename(path.with_name(f"{path.stem}.{number:04d}.jsonl"))

    def _files(self) -> list[Path]:
        """List the files of the journal; what else lies in the folder is somebody else's."""
        return [path for path in self._folder.iterdir() if NAME.fullmatch(path.name)]

    def _drop(self, num_lines: int, reason: str) -> None:
        self._metrics.journal_dropped.inc(num_lines)
        with self._complaining:
            self._num_dropped += num_lines
            now = time.monotonic()
            if now < self._next_complaint:
                return
            self._next_complaint = now + COMPLAINTS_S
            dropped, self._num_dropped = self._num_dropped, 0
        _log.warning("journal_dropped", extra={"fields": {"answers": dropped, "reason": reason}})


def _write_all(file: int, lines: bytes) -> None:
    rest = memoryview(lines)
    while rest:
        rest = rest[os.write(file, rest) :]  # the second call says why the first one wrote less


def _age(path: Path) -> tuple[bool, str, bool, int]:
    """Sort answers before feedback, days in order, and within a day the file that is being filled last."""
    name = NAME.fullmatch(path.name)
    assert name
    kind, day, number = name.groups()
    return kind == "feedback", day, number is None, int(number or 0)


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
