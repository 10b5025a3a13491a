from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httptools
import pytest

START = """
import logging, sys
from flatfix.serving import logs
logs.configure({level!r})
log = logging.getLogger("flatfix.serving")
"""
HOSTILE = 'a\nb\r\x00\x1b[31m\u2028"}{\ud800'
UVICORN = """
import uvicorn
async def app(scope, receive, send):
    if scope["type"] == "http":
        raise ValueError("inside")
def create_app():
    logs.configure()
    return app
if __name__ == "__main__":
    uvicorn.run(create_app, factory=True, port=0, log_config=None)
"""


def said(script: str, level: str = "info") -> list[dict[str, Any]]:
    command = [sys.executable, "-c", START.format(level=level) + script]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert not done.returncode and not done.stdout
    return [json.loads(line) for line in done.stderr.split(b"\n")[:-1]]


def test_an_event_with_fields_is_one_object():
    (line,) = said('log.info("model_swapped", extra={"fields": {"version": "7", "seconds": 1.5}})')
    assert line["ts"].endswith("Z") and time.strptime(line["ts"][:19], "%Y-%m-%dT%H:%M:%S")
    assert {key: line[key] for key in list(line)[1:]} == {
        "level": "info",
        "event": "model_swapped",
        "version": "7",
        "seconds": 1.5,
    }


def test_nothing_that_a_client_sends_breaks_a_line():
    lines = said(
        f"hostile = {HOSTILE!r}\n"
        'log.warning("refused %s", hostile, extra={"fields": {"host": hostile, "raw": b"\\n"}})\n'
        'logs.AccessLog().write("GET", hostile, 200, 0.0012, hostile)\n'
        'log.info("x" * 100_000)'
    )
    assert [line["event"][:7] for line in lines] == ["refused", "request", "xxxxxxx"]
    assert lines[0]["host"] == lines[1]["handler"] == lines[1]["request_id"] == HOSTILE
    assert len(lines[2]["event"]) < 1000


def test_an_exception_says_where_it_was_raised_and_its_cause():
    (line,) = said(
        "def inner():\n    try:\n        1 / 0\n    except ZeroDivisionError as error:\n"
        "        raise ValueError('bad\\nnews') from error\n"
        "try:\n    inner()\nexcept ValueError:\n    log.exception('reload_failed')"
    )
    assert line["exception"] == "ValueError: bad\nnews" and line["cause"] == "ZeroDivisionError: division by zero"
    assert [place.split()[-1] for place in line["traceback"]] == ["<module>", "inner"]


def test_other_libraries_are_heard_in_the_same_form_from_warnings_on():
    lines = said(
        "import warnings\n"
        'logging.getLogger("boto").info("chatter")\n'
        'logging.getLogger("uvicorn.error").info("Started server process")\n'
        'logging.getLogger("uvicorn.access").info("GET /?secret=1")\n'
        'warnings.warn("old")\n'
    )
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("uvicorn.error", "info"),
        ("py.warnings", "warning"),
    ]


def test_configuring_twice_says_nothing_twice_and_a_higher_level_leaves_requests_out():
    script = 'logs.AccessLog().write("GET", "/", 200, 0.01, "a")\nlog.warning("once")'
    assert [line["event"] for line in said(f"logs.configure()\n{script}")] == ["request", "once"]
    assert [line["event"] for line in said(script, level="warning")] == ["once"]


def test_refusals_for_one_reason_are_said_now_and_then_with_how_many_were_left_out():
    lines = said(
        "import time\n"
        "logs.REFUSALS_S = 0.2\n"
        "access, begin = logs.AccessLog(), time.monotonic()\n"
        "number = 0\n"
        "while time.monotonic() < begin + 0.3:\n"
        '    access.write("POST", "/predict", 503, 0.0001, "a", "overloaded", None, 10)\n'
        "    number += 1\n"
        'access.write("POST", "/predict", 401, 0.0001, "b", "no_key")\n'
        'access.write("POST", "/predict", 200, 0.0001, "c", None, "press-4", 10)\n'
        'log.info("done", extra={"fields": {"number": number}})'
    )
    first, second, other, answered, done = lines
    assert (first["left_out"], other["left_out"], other["reason"]) == (0, 0, "no_key")
    assert 100 < second["left_out"] <= done["number"] - 2
    assert answered["key"] == "press-4" and answered["bytes"] == 10 and "reason" not in answered


def test_a_standard_error_that_nobody_reads_holds_nothing_up():
    script = (
        START.format(level="info")
        + "access = logs.AccessLog()\n"
        + 'for _ in range(20_000):\n    access.write("GET", "/", 200, 0.01, "a" * 32)\n'
        + 'print("still here", flush=True)\nsys.stdin.read()'
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        assert process.stdout.readline() == b"still here\n"
        process.kill()


def test_long_lines_of_several_workers_do_not_mix():
    script = START.format(level="info") + (
        "for number in range(3000):\n    log.info('x' * 400, extra={'fields': {'who': sys.argv[1], 'number': number}})"
    )
    read, write = os.pipe()
    workers = [subprocess.Popen([sys.executable, "-c", script, who], stderr=write) for who in "ab"]
    os.close(write)
    with os.fdopen(read, "rb") as lines:
        found = [json.loads(line) for line in lines]
    assert [worker.wait() for worker in workers] == [0, 0]
    for who in "ab":
        assert [line["number"] for line in found if line["who"] == who] == list(range(3000))


@pytest.mark.service
@pytest.mark.parametrize("way", ["log_config=None", "command"])
def test_all_that_uvicorn_says_is_json_lines(tmp_path: Path, way: str):
    (tmp_path / "served.py").write_text(START.format(level="info") + UVICORN)
    command = [sys.executable, "-m", "uvicorn", "served:create_app", "--factory", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "served.py"] if way != "command" else command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    lines = []
    for line in process.stderr:
        lines.append(json.loads(line))
        if lines[-1]["event"].startswith("Uvicorn running on"):
            break
    url = httptools.parse_url(lines[-1]["event"].split()[3].encode())
    asked = subprocess.run(["curl", "-s", "-o", "/dev/null", f"http://127.0.0.1:{url.port}/?secret=1"])
    assert not asked.returncode
    process.terminate()
    stdout, stderr = process.communicate(timeout=30)
    lines += [json.loads(line) for line in stderr.splitlines()]

    assert not stdout and "secret" not in str(lines)
    (failed,) = [line for line in lines if "exception" in line]
    assert failed["exception"] == "ValueError: inside" and failed["traceback"][-1].endswith(" app")
    assert lines[-1]["event"].startswith("Finished server process")
