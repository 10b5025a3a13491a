from __future__ import annotations

import http.server
import logging
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import mlflow.experiments
import pytest
from click.testing import CliRunner
from mlflow.tracking import MlflowClient

from flatfix.errors import UserError
from flatfix.tracking import connection, preflight
from flatfix.tracking.connection import connect, redact
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.server import wait_until


@contextmanager
def http_server(status: int) -> Iterator[str]:
    """An HTTP server that is no MLflow: it answers every request with one status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///data/mlruns", "file:mlruns", ""])
def test_a_plain_folder_is_answered_with_the_two_forms_that_work(uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri=sqlite:////.*mlflow\.db.*tracking\.uri=http://"):
        preflight(uri, "exp")


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:mlflow.db"])
def test_sqlite_without_a_file_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri=.*sqlite:///<relative path>"):
        preflight(uri, "exp")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UserError, match=r"tracking\.uri=htp://server"):
        preflight("htp://server", "exp")


def test_a_new_experiment_is_created_once_with_artifacts_beside_the_database(tmp_path: Path) -> None:
    uri = fresh_database(tmp_path)
    first = preflight(uri, "tires / night shift")
    assert preflight(uri, "tires / night shift") == first
    found = MlflowClient(uri).get_experiment(first)
    assert found.name == "tires / night shift"
    assert found.artifact_location == (tmp_path / "mlartifacts" / "tires-night-shift").as_uri()


def test_an_experiment_asked_for_by_several_at_once_is_one(tmp_path: Path) -> None:
    uri = fresh_database(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: preflight(uri, "exp"), range(4)))
    assert len(ids) == 1


def test_a_relative_database_is_found_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_database(tmp_path)
    monkeypatch.chdir(tmp_path)
    experiment_id = preflight("sqlite:///mlflow.db", "exp")
    assert preflight(f"sqlite:///{tmp_path}/mlflow.db", "exp") == experiment_id


def test_an_experiment_in_the_trash_is_refused_and_the_command_shown_restores_it(tmp_path: Path) -> None:
    uri = fresh_database(tmp_path)
    experiment_id = preflight(uri, "exp")
    MlflowClient(uri).delete_experiment(experiment_id)
    with pytest.raises(UserError, match=r"tracking\.experiment=exp: .*trash") as caught:
        preflight(uri, "exp")
    variable, program, group, *arguments = shlex.split(str(caught.value).splitlines()[1])
    assert (variable, program, group) == (f"MLFLOW_TRACKING_URI={uri}", "mlflow", "experiments")
    done = CliRunner().invoke(mlflow.experiments.commands, arguments, env={"MLFLOW_TRACKING_URI": uri})
    assert done.exit_code == 0, done.output
    assert preflight(uri, "exp") == experiment_id


def test_an_experiment_name_that_mlflow_refuses_is_the_fault_of_its_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.experiment="):
        preflight(fresh_database(tmp_path), "x" * 600)


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("to do: change the tires")
    with pytest.raises(UserError, match=r"notes\.db is not a SQLite database"):
        preflight(f"sqlite:///{tmp_path}/notes.db", "exp")
    assert (tmp_path / "notes.db").read_text() == "to do: change the tires"


def test_a_database_in_an_impossible_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"tracking\.uri=.*(File exists|Not a directory)"):
        preflight(f"sqlite:///{tmp_path}/file/mlflow.db", "exp")


def test_a_database_of_another_mlflow_version_is_answered_with_the_command_that_upgrades_it(tmp_path: Path) -> None:
    uri = fresh_database(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '0a8213491aaa'")
    with pytest.raises(UserError, match="mlflow db upgrade"):
        preflight(uri, "exp")


@pytest.mark.slow
def test_an_interrupted_first_start_leaves_no_half_database(tmp_path: Path) -> None:
    script = f"from flatfix.tracking import preflight; preflight('sqlite:///{tmp_path}/mlflow.db', 'exp')"
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
    wait_until(lambda: any(tmp_path.glob(".mlflow-*/mlflow.db")), 60, "the database that is being made")
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    assert not (tmp_path / "mlflow.db").exists()
    assert preflight(f"sqlite:///{tmp_path}/mlflow.db", "exp")


def test_a_server_that_is_not_there_is_known_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"tracking\.uri={re.escape(uri)}: .*ConnectionRefusedError.*tracking\.uri"):
        preflight(uri, "exp")
    assert time.monotonic() - start < 2


def test_a_server_that_never_answers_is_known_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection.PROBE_TIMEOUT_S < 10
    monkeypatch.setattr(connection, "PROBE_TIMEOUT_S", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(UserError, match="TimeoutError"):
            preflight(f"http://127.0.0.1:{silent.getsockname()[1]}", "exp")
        assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("status", "message"),
    [(503, "HTTP status 503"), (401, "MLFLOW_TRACKING_TOKEN"), (404, "cannot be used there")],
)
def test_a_server_that_is_of_no_use_is_refused(status: int, message: str) -> None:
    with http_server(status) as uri, pytest.raises(UserError, match=message):
        preflight(uri, "exp")


def test_a_password_is_never_shown() -> None:
    assert redact("https://user:secret@host:5000/mlflow") == "https://user:***@host:5000/mlflow"
    assert redact("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    with pytest.raises(UserError) as caught:
        preflight("http://user:secret@127.0.0.1:9", "exp")
    assert "secret" not in str(caught.value)


def test_the_environment_of_the_user_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    connect("http://127.0.0.1:9")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"


def test_mlflow_still_warns_but_no_longer_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_LOGGING_LEVEL", raising=False)
    connect("http://127.0.0.1:9")
    assert logging.getLogger("mlflow.store.db.utils").getEffectiveLevel() == logging.WARNING
