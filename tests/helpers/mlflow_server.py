"""A real MLflow server on the loopback interface."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.helpers.mlflow_db import fresh_database
from tests.helpers.server import Server, free_ports


class MlflowServer(Server):
    """`mlflow server` over a SQLite file and artifacts in `folder`, or over another database and artifact store."""

    def __init__(
        self, folder: Path, *, database_uri: str | None = None, artifacts: str | None = None, num_workers: int = 1
    ) -> None:
        super().__init__(folder, free_ports(1))
        self.database_uri = database_uri or fresh_database(folder)
        self._artifacts = artifacts or str(folder / "server-artifacts")
        self._num_workers = num_workers
        self.uri = f"http://127.0.0.1:{self.ports[0]}"

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.ports[0])]
        command += ["--backend-store-uri", self.database_uri, "--workers", str(self._num_workers)]
        return [*command, "--artifacts-destination", self._artifacts]

    def _environment(self) -> dict[str, str]:
        return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
