"""The servers that take turns in `benchmarks/serving.py`: how each is started, asked and understood."""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flatfix.serving.client import FORM, form_of
from tests.helpers.server import Server, free_ports

ROOT = Path(__file__).parents[2]
JSON = "application/json"


class Arm(NamedTuple):
    """Say how a server is started and asked; `{folder}`, `{port}` and `{uri}` in the command are filled in.

    Attributes:
        command: after Python's name.
        read: the probabilities of the classes, from the JSON of an answer.
        target: that pictures are posted to.
        body: that carries a picture.
        content_type: of the body.
    """

    command: tuple[str, ...]
    read: Callable[[Any], list[float]]
    target: str = "/predict"
    body: Callable[[bytes], bytes] = form_of
    content_type: str = FORM


def ours(*options: str) -> Arm:
    """Start the real server; what `runtime=auto` chose the first time holds for all rounds."""
    paths = ("paths.output={work}", "paths.cache={folder}/cache")
    command = ("{root}/serve.py", "port={port}", "tracking.uri={uri}", *paths, *options)
    return Arm(command, lambda answer: list(answer["predictions"][0]["probabilities"].values()))


def peer(module: str, *options: str) -> Arm:
    """Start a module of this package."""
    return Arm(
        ("-m", f"benchmarks.peers.{module}", "{folder}", "{port}", *options), lambda answer: answer["probabilities"]
    )


def as_base64(data: bytes) -> bytes:
    """Return the JSON in which MLflow takes bytes."""
    return json.dumps(
        {"dataframe_split": {"columns": ["picture"], "data": [[base64.b64encode(data).decode()]]}}
    ).encode()


MLFLOW = ("-m", "mlflow", "models", "serve", "-m", "{folder}/mlflow", "-p", "{port}", "--env-manager", "local")
OURS, OURS_AUTO = "flatfix, fp32", "flatfix, auto"
ARMS = {
    OURS: ours("precision=fp32"),
    OURS_AUTO: ours(),
    "FastAPI + Pillow + PyTorch": peer("serve_plain"),
    "LitServe, batch 1": peer("serve_litserve", "torch", "1"),
    "LitServe, batch 8": peer("serve_litserve", "torch", "8"),
    "LitServe, batch 8, our runtime": peer("serve_litserve", "flatfix", "8"),
    "mlflow models serve": Arm(MLFLOW, lambda answer: answer["predictions"][0], "/invocations", as_base64, JSON),
}


class Running(Server):
    """One server in a process of its own, ready when it answers a picture."""

    def __init__(self, arm: Arm, folder: Path, uri: str, work: Path, picture: bytes) -> None:
        super().__init__(work, free_ports(1))
        self.url = f"http://127.0.0.1:{self.ports[0]}"
        self._arm, self._picture = arm, picture
        self._filled = {"root": ROOT, "folder": folder, "uri": uri, "work": work, "port": self.ports[0]}

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def probabilities(self, picture: bytes) -> list[float]:
        """Return the answer to a picture."""
        headers = {"content-type": self._arm.content_type}
        request = urllib.request.Request(self.url + self._arm.target, self._arm.body(picture), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return self._arm.read(json.load(answer))

    def health(self) -> dict[str, Any]:
        """Return what our server says of itself."""
        with urllib.request.urlopen(f"{self.url}/health", timeout=60) as answer:
            return dict(json.load(answer))

    def _command(self) -> list[str]:
        return [sys.executable, *(part.format(**self._filled) for part in self._arm.command)]

    def _environment(self) -> dict[str, str]:
        # MLflow starts uvicorn by its name.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {"PYTHONPATH": str(ROOT), "PATH": path}

    def _is_ready(self) -> bool:
        try:
            return len(self.probabilities(self._picture)) > 0
        except urllib.error.HTTPError as error:
            if error.code != 503:  # not ready yet
                raise
            return False
        except OSError:
            return False
