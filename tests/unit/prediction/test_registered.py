from __future__ import annotations

from pathlib import Path

import pytest

from flatfix.errors import UserError
from flatfix.prediction.registered import open_registered
from flatfix.registry.view import Registry
from tests.helpers.candidates import candidates, some_runs
from tests.helpers.mlflow_db import fresh_database


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Two versions, one of them in production."""
    uri = fresh_database(tmp_path_factory.mktemp("mlflow"))
    registry = candidates(uri, some_runs(uri, tmp_path_factory.mktemp("runs"), 2))
    registry.client.set_registered_model_alias(registry.name, "production", "1")
    return registry


@pytest.mark.parametrize(
    ("name", "which", "message"),
    [
        (None, "prodution", r"alias=prodution: registered model tires has none\. .*Did you mean 'production'"),
        (None, "staging", r"alias=staging: .* the aliases @production \(version 1\)"),
        (None, "7", r"alias=7: .*versions 1, 2"),
        ("tyres", "production", r"registry\.name=tyres: .*Did you mean 'tires'"),
    ],
)
def test_a_version_that_is_not_there_is_refused_and_no_other_taken(
    registry: Registry, tmp_path: Path, name: str | None, which: str, message: str
) -> None:
    uri = registry.client.tracking_uri
    with pytest.raises(UserError, match=message):
        open_registered(uri, name, which, runtime="auto", precision="auto", cache_dir=tmp_path)
