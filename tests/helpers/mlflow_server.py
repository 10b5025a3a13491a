"""A real MLflow server on the loopback interface."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.helpers.mlflow_db import fresh_database
from tests.helpers.server import Server, free_ports


class MlflowServer(Server):
    """`mlflow server` over a SQLite file in `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, free_ports(1))
        self.database_uri = fresh_database(folder)
        self.uri = f"http://127.0.0.1:{self.ports[0]}"

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.ports[0])]
        command += ["--backend-store-uri", self.database_uri, "--workers", "1"]
        return [*command, "--artifacts-destination", str(self.folder / "server-artifacts")]

    def _environment(self) -> dict[str, str]:
        return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
