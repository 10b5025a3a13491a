from __future__ import annotations

import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flatfix.errors import UserError
from flatfix.registry.versions import Version, aliases, find, list_versions, registered_name
from flatfix.registry.view import Registry
from flatfix.tracking.connection import connect
from tests.helpers.candidates import NAME, candidates, some_runs
from tests.helpers.mlflow_db import fresh_database


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, list[Version]]:
    """Three versions, the second of them in production."""
    uri = fresh_database(tmp_path_factory.mktemp("mlflow"))
    registry = candidates(uri, some_runs(uri, tmp_path_factory.mktemp("runs"), 3))
    registry.client.set_registered_model_alias(NAME, "production", "2")
    return registry, list_versions(registry.client, NAME)


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return connect(fresh_database(tmp_path))


def test_a_version_tells_what_it_is(made: tuple[Registry, list[Version]]) -> None:
    version = made[1][0]
    assert (version.name, version.number, version.stage, version.model_name) == (NAME, 1, "candidate", "cnn")
    assert (version.dataset_name, version.dataset_version, version.dataset_digest) == (NAME, "v1", "0123456789abcdef")
    assert version.validation == pytest.approx({"f1": 0.5, "loss": 0.5, "auroc": float("nan")}, nan_ok=True)
    assert version.test == pytest.approx({"f1": 0.49, "loss": 0.51})
    assert version.source.endswith("/artifacts/package")


def test_versions_are_listed_oldest_first_whatever_was_changed_last(made: tuple[Registry, list[Version]]) -> None:
    registry, versions = made
    registry.client.set_model_version_tag(NAME, "1", "seen by", "somebody")
    assert [version.number for version in list_versions(registry.client, NAME)] == [1, 2, 3]


def test_what_others_put_into_the_model_and_doubles_of_a_run_are_no_versions(
    made: tuple[Registry, list[Version]],
) -> None:
    client, versions = made[0].client, made[1]
    by_hand = client.create_model_version(NAME, versions[0].source, None, {"stage": "candidate"})
    double = client.create_model_version(NAME, versions[0].source, versions[0].run_id, dict(versions[0].tags))
    assert [version.number for version in list_versions(client, NAME)] == [1, 2, 3]
    for version in (by_hand, double):
        client.delete_model_version(NAME, version.version)


def test_a_version_is_found_by_its_number_and_by_an_alias(made: tuple[Registry, list[Version]]) -> None:
    client = made[0].client
    assert aliases(client, NAME) == {"production": 2}
    assert find(client, NAME, "production").number == 2
    assert find(client, NAME, "3").number == 3


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (
            "7",
            "alias=7: registered model tires has none. It has versions 1, 2, 3, and the aliases @production (.*",
        ),
        ("prodution", "alias=prodution: registered model tires has none. .* Did you mean 'production'?"),
    ],
)
def test_a_version_that_is_not_there_is_refused_with_what_is(
    made: tuple[Registry, list[Version]], which: str, message: str
) -> None:
    with pytest.raises(UserError, match=".*".join(map(re.escape, message.split(".*")))):
        find(made[0].client, NAME, which)


def test_the_only_registered_model_needs_no_name(made: tuple[Registry, list[Version]]) -> None:
    client = made[0].client
    client.create_registered_model("of another maker")
    assert registered_name(client, None) == registered_name(client, NAME) == NAME
    with pytest.raises(UserError, match=r"registry\.name=tyres: .* Did you mean 'tires'\?"):
        registered_name(client, "tyres")
    with pytest.raises(UserError, match=r"registry\.name=of another maker: "):
        registered_name(client, "of another maker")


def test_without_a_registered_model_it_says_how_to_get_one(client: MlflowClient) -> None:
    with pytest.raises(UserError, match=r"registry\.name=null: nothing is registered .* action=register run_id="):
        registered_name(client, None)


def test_of_several_registered_models_one_must_be_named_and_all_are_found(client: MlflowClient) -> None:
    for index in range(101):  # MLflow gives 100 at once
        client.create_registered_model(f"model {index:03d}", tags={"flatfix.journal": "some run"})
    assert registered_name(client, "model 100") == "model 100"
    with pytest.raises(UserError, match="there are several.*\n  model 000\n  model 001"):
        registered_name(client, None)
