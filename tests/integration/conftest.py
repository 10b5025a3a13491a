from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from flatfix.training.result import RunResult
from flatfix.training.run import train
from tests.helpers.compose import TINY, compose_train
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.s3_server import S3Server

Train = Callable[..., RunResult]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store, cache and MLflow for the runs of a module, whose folders are their own."""
    folder = tmp_path_factory.mktemp("output")
    fresh_database(folder)
    return folder


@pytest.fixture
def run_tiny(output: Path, tmp_path: Path) -> Train:
    def run(*overrides: str, name: str = "run", **options: Any) -> RunResult:
        return train(compose_train(output, *TINY, f"paths.run={tmp_path / name}", *overrides), **options)

    return run


@pytest.fixture
def client(output: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{output / 'mlflow.db'}")


@pytest.fixture(scope="session")
def one_s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests of a process: each has keys of its own, and may kill it."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_server(one_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, running, and its owner in the environment."""
    if not one_s3_server.is_running:
        one_s3_server.start()
    one_s3_server.become("owner", monkeypatch)
    return one_s3_server
