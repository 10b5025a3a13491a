"""Runs that qualified, and versions made of them, without the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flatfix.inference.package import CARD, MODEL, sha256_of
from flatfix.registry.register import PACKAGE, register
from flatfix.registry.view import Registry
from flatfix.tracking.connection import connect, preflight
from tests.helpers.cards import make_card

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NAME = "tires"
DIGEST = "0123456789abcdef"  # of the dataset


def a_run(
    uri: str,
    folder: Path,
    *,
    f1: float = 0.9,
    is_qualified: bool = True,
    status: str = "FINISHED",
    digest: str = DIGEST,
    has_package: bool = True,
) -> str:
    """Log a run with the package of a model that cannot predict; return its id."""
    client = connect(uri)
    tags = {"qualified": str(is_qualified).lower(), "qualification": f"val f1 {f1}, asked for at least 0.8"}
    run_id: str = client.create_run(preflight(uri, "flatfix"), tags=tags).info.run_id
    client.log_param(run_id, "dataset_digest", digest)
    if has_package:
        log_package(uri, folder, run_id, f1=f1, digest=digest)
    client.set_terminated(run_id, status)
    return run_id


def log_package(uri: str, folder: Path, run_id: str, *, f1: float = 0.9, digest: str = DIGEST) -> None:
    """Log the package of a model that cannot predict."""
    connect(uri).log_artifacts(run_id, str(_package(folder / run_id, run_id, f1, digest)), PACKAGE)


def some_runs(uri: str, folder: Path, count: int) -> list[str]:
    """Log runs, the later the better; return their ids."""
    return [a_run(uri, folder, f1=0.5 + 0.01 * index) for index in range(count)]


def candidates(uri: str, runs: Sequence[str], name: str = NAME) -> Registry:
    """Register runs, in their order, and return their registered model."""
    for run_id in runs:
        register(uri, run_id, name)
    return Registry.open(connect(uri), name)


def numbers_of(client: MlflowClient, name: str = NAME) -> list[int]:
    """Return the numbers of all versions that MLflow holds, whoever registered them."""
    return sorted(int(version.version) for version in client.search_model_versions(f"name='{name}'"))


def _package(folder: Path, run_id: str, f1: float, digest: str) -> Path:
    (folder / "extra_files").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / MODEL).write_bytes(run_id.encode())
    card = make_card(
        validation={"f1": f1, "loss": 1 - f1, "auroc": float("nan")},
        test={"f1": f1 - 0.01, "loss": 1.01 - f1},
        run_id=run_id,
        dataset={"name": NAME, "version": "v1", "digest": digest},
        files={MODEL: sha256_of(folder / MODEL)},
    )
    (folder / "extra_files" / CARD).write_bytes(card.to_json())
    return folder
