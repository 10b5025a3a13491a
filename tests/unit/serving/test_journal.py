from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flatfix.files import locked
from flatfix.serving.journal import MAX_WAITING, Journal
from flatfix.serving.metrics import Metrics
from tests.helpers.small_disk import mounted

ROW = {"class": "dent", "decision": "review", "probability": 0.625, "probabilities": {"dent": 0.625, "ok": 0.375}}
WRITE = """
import resource, sys
from pathlib import Path
from flatfix.serving.journal import Journal
from flatfix.serving.metrics import Metrics
metrics = Metrics()
journal = Journal(Path(sys.argv[1]), 1, metrics)
row = {"class": "dent", "decision": "dent", "probability": 0.875}
"""


def read(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [line for path in sorted(folder.glob(f"{kind}-*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def dropped(metrics: Metrics) -> int:
    (line,) = [line for line in metrics.render()[0].decode().splitlines() if line.startswith("journal_dropped_total ")]
    return int(float(line.split()[1]))


def today() -> str:
    return datetime.now(UTC).date().isoformat()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", megabytes=1) as disk:
        yield disk


def test_an_answer_and_its_feedback_are_kept_without_anything_of_the_picture(tmp_path: Path):
    journal = Journal(tmp_path / "new", 1, Metrics())
    journal.answered("a1", "7", [ROW, ROW | {"class": "ok", "decision": "ok"}])
    journal.feedback("a1", 1, "dent", "8")
    journal.close()

    first, second = read(tmp_path / "new", "answers")
    assert datetime.fromisoformat(first.pop("time")).tzinfo is UTC
    assert first == {
        "request_id": "a1",
        "model_version": "7",
        "index": 0,
        "class": "dent",
        "decision": "review",
        "probability": 0.625,
    }
    assert (second["index"], second["class"]) == (1, "ok")
    (told,) = read(tmp_path / "new", "feedback")
    assert datetime.fromisoformat(told.pop("time")).tzinfo is UTC
    assert told == {"request_id": "a1", "live_version": "8", "index": 1, "label": "dent"}


def test_files_are_named_by_the_day_in_utc_wherever_the_server_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = today()
    for zone in ("UTC-14", "UTC+12"):  # in one of the two it is another day now
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        Journal(tmp_path, 1, Metrics()).feedback("a1", 0, "ok", None)
    monkeypatch.undo()
    time.tzset()
    assert {path.stem for path in tmp_path.glob("*.jsonl")} <= {f"feedback-{before}", f"feedback-{today()}"}


def test_a_disk_that_hangs_holds_nothing_up_and_what_was_dropped_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    metrics = Metrics()
    journal = Journal(tmp_path, 100, metrics)
    number = MAX_WAITING + 3000
    with caplog.at_level(logging.WARNING, "flatfix.serving"):
        with locked(tmp_path / ".lock"):  # as a worker does whose disk hangs
            begin = time.monotonic()
            for index in range(number):
                journal.answered(str(index), "7", [ROW])
            assert time.monotonic() - begin < 5
        journal.close(30)

    kept = [int(line["request_id"]) for line in read(tmp_path, "answers")]
    assert kept == sorted(set(kept)) and MAX_WAITING <= len(kept) < number
    assert dropped(metrics) == number - len(kept)
    assert [record.message for record in caplog.records] == ["journal_dropped"]


def test_a_full_disk_drops_answers_refuses_feedback_and_spoils_no_line(
    small_disk: Path, caplog: pytest.LogCaptureFixture
):
    metrics = Metrics()
    journal = Journal(small_disk, 100, metrics)
    journal.answered("before", "7", [ROW])
    journal.feedback("before", 0, "ok", "7")
    journal.flush(30)
    filler = small_disk / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with caplog.at_level(logging.WARNING, "flatfix.serving"):
        for _ in range(100):  # more than fits into the page that has begun
            journal.answered("full", "7", [ROW])
        journal.flush(30)
    with pytest.raises(OSError) as refused:
        for _ in range(100):
            journal.feedback("lost", 0, "ok", "7")
    filler.unlink()
    journal.answered("after", "7", [ROW])
    journal.close()

    first, *fitted, last = [line["request_id"] for line in read(small_disk, "answers")]
    assert (first, last) == ("before", "after")
    assert 0 < dropped(metrics) == 100 - len(fitted)
    assert refused.value.errno == errno.ENOSPC and read(small_disk, "feedback")[0]["request_id"] == "before"
    (record,) = caplog.records
    assert record.message == "journal_dropped" and record.fields["reason"] == os.strerror(errno.ENOSPC)


def test_a_line_that_was_written_in_part_is_taken_back(tmp_path: Path):
    script = WRITE + (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))\n"
        "for number in range(2):\n"
        "    try:\n"
        "        journal.feedback('a' * 40, 0, 'ok', '7')\n"
        "    except OSError:\n"
        "        print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "refused\n" and not done.returncode
    assert len(read(tmp_path, "feedback")) == 1


def test_workers_share_the_files_and_lose_nothing_while_they_are_set_aside(tmp_path: Path):
    script = WRITE + (
        "for number in range(700):\n"
        "    journal.answered(f'{sys.argv[2]}-{number}', '7', [row])\n"
        "    if number % 50 == 0: journal.flush(30)\n"
        "journal.close(30)"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), who]) for who in "abc"]
    assert [worker.wait() for worker in workers] == [0, 0, 0]

    lines = read(tmp_path, "answers")
    assert len(list(tmp_path.glob("answers-*.jsonl"))) > 2
    assert {line["request_id"] for line in lines} == {f"{who}-{number}" for who in "abc" for number in range(700)}
    assert len(lines) == 2100


def test_a_file_of_somebody_else_is_left_alone_and_hinders_nothing(tmp_path: Path):
    foreign = tmp_path / f"answers-{today()}.backup.jsonl"
    foreign.write_bytes(bytes(900_000))
    journal = Journal(tmp_path, 1, Metrics())
    for _ in range(40):
        journal.answered("a1", "7", [ROW] * 32)
        assert journal.flush(30)
    journal.close()

    assert (tmp_path / f"answers-{today()}.0001.jsonl").exists()
    assert foreign.exists()


def test_a_label_that_was_kept_is_counted_even_where_no_room_can_be_made(tmp_path: Path):
    (tmp_path / "answers-2026-01-01.jsonl").mkdir()  # which cannot be unlinked
    (tmp_path / "answers-2026-01-02.jsonl").write_bytes(bytes(1_000_000))
    metrics = Metrics()
    Journal(tmp_path, 1, metrics).feedback("a1", 0, "ok", "7")

    assert len(read(tmp_path, "feedback")) == 1
    assert b"feedback_total 1.0" in metrics.render()[0]


def test_the_oldest_answers_go_where_there_would_be_more_than_is_allowed(tmp_path: Path):
    (tmp_path / "answers-2026-01-02.jsonl").write_text("{}\n")
    (tmp_path / "answers-2026-01-02.0001.jsonl").write_text("{}\n")
    (tmp_path / "feedback-2026-01-01.jsonl").write_text("{}\n")
    journal = Journal(tmp_path, 1, Metrics())
    for index in range(300):
        journal.answered(f"a{index}", "7", [ROW] * 32)
        if index % 10 == 0:
            journal.flush(30)
            assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= 1_000_000
    journal.close(30)

    kept = [int(line["request_id"][1:]) for line in read(tmp_path, "answers")]
    assert 0 < min(kept) and max(kept) == 299 and len(kept) > 3000
    assert (tmp_path / "feedback-2026-01-01.jsonl").exists()
    assert not list(tmp_path.glob("answers-2026-01-02*"))
