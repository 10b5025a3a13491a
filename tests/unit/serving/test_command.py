from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flatfix.errors import UserError
from flatfix.serving import command
from flatfix.serving.settings import Settings, read
from tests.helpers.server import free_ports


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_a_folder_that_cannot_be_written_to_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(UserError, match=f"paths.output={folder}: cannot be written to"):
            command._check_output(folder)
    command._check_output(tmp_path / "new")
    assert list((tmp_path / "new" / "serving").iterdir()) == []


def test_a_standard_stream_that_is_closed_becomes_no_socket_of_the_server() -> None:
    script = (
        "import os, socket; from flatfix.serving import command; os.close(2); command._fill_standard_streams();"
        "print(socket.socket().fileno() > 2, os.readlink('/proc/self/fd/2'))"
    )
    assert run(script) == "True /dev/null"


def test_what_is_waited_for_at_the_start_is_said_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"http://127.0.0.1:{free_ports(1)[0]}"
    command._check_registry(replace(Settings.of(read(None)), uri=uri, cache=tmp_path))
    told = capsys.readouterr()
    assert told.out.strip() == f"looking for alias=production at {uri}"
    assert told.err.startswith("waiting for the registry")


def test_once_there_is_a_server_nothing_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"paths:\n  output: {tmp_path}\n")
    monkeypatch.setenv("FLATFIX_SERVE_CONFIG", str(file))
    script = "from flatfix.serving.app import create_app; from flatfix.console import say; create_app(); say('fetched')"
    assert run(script) == ""
