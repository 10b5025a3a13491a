"""A real MLflow server on the loopback interface, to start, stop, kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.helpers.mlflow_db import fresh_database

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Return when `condition` holds; fail when it does not within the bound."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(0.02)


class MlflowServer:
    """`mlflow server` over a SQLite file in `folder`; as a context manager it is running inside and gone outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database_uri = fresh_database(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, on the same port each time, and wait until it answers."""
        assert self._process is None, "runs already"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.database_uri, "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "server-artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **quiet},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own: the server starts workers that must go with it
            )
        try:
            wait_until(self._answers_or_died, START_TIMEOUT_S, f"{self.uri}/health")
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the server as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server and its workers in the middle of whatever they do."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let the server hang: it takes connections and answers none."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        """Whether the server has been started and not ended."""
        return self._process is not None

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_running:
            self.kill()

    def _answers_or_died(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None or self._answers()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _signal(self, which: signal.Signals) -> None:
        assert self._process is not None, "does not run"
        os.killpg(self._process.pid, which)

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None, "does not run"
        with suppress(ProcessLookupError):  # it may have died by itself
            self._signal(how)
        self._process.wait(timeout=STOP_TIMEOUT_S)
        self._process = None
        wait_until(lambda: not self._is_listening(), STOP_TIMEOUT_S, f"end of {self.uri}")
