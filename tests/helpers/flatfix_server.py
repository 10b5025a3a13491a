"""The real server, `serve.py`, in a process of its own."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.helpers.compose import ROOT
from tests.helpers.server import Server, free_ports


class FlatfixServer(Server):
    """`serve.py` over the MLflow at `uri`; ready when it answers with a model, or as soon as it lives."""

    def __init__(self, folder: Path, uri: str, *options: str, waits_for_model: bool = True) -> None:
        super().__init__(folder, free_ports(1))
        self.url = f"http://127.0.0.1:{self.ports[0]}"
        self.uri = uri
        self._options = (f"tracking.uri={uri}", f"paths.output={folder}", "poll_s=0.2", *options)
        self._ready = "/readyz" if waits_for_model else "/livez"

    def get(self, path: str, timeout_s: float = 10) -> tuple[int, bytes]:
        """Return the status and the body of an answer."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=timeout_s) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def health(self) -> dict[str, Any]:
        """Return how the server is."""
        return json.loads(self.get("/health")[1])

    def post(
        self, path: str, body: bytes, content_type: str = "application/octet-stream", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Send a body; return the status and the JSON of the answer."""
        request = urllib.request.Request(
            f"{self.url}{path}", body, {"content-type": content_type, **headers}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def predict(self, picture: bytes) -> dict[str, Any]:
        """Return the answer to a picture."""
        status, answer = self.post("/predict", picture)
        assert status == 200, answer
        return answer

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "server.log").read_text()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def _command(self) -> list[str]:
        return [sys.executable, str(ROOT / "serve.py"), f"port={self.ports[0]}", *self._options]

    def _is_ready(self) -> bool:
        try:
            return self.get(self._ready, timeout_s=2)[0] == 200
        except OSError:
            return False
