from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flatfix.errors import UserError
from flatfix.inference.package import CARD, MODEL, sha256_of
from flatfix.registry.register import PACKAGE, PENDING, register
from flatfix.tracking.connection import connect
from tests.helpers.candidates import NAME, a_run, numbers_of
from tests.helpers.mlflow_db import fresh_database


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_database(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def client(uri: str) -> MlflowClient:
    return connect(uri)


def test_a_run_that_qualified_becomes_a_candidate_that_says_all_of_it(
    uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_id = a_run(uri, tmp_path, f1=0.9)
    connect(uri).set_tag(run_id, PENDING, "true")
    capfd.readouterr()
    made = register(uri, run_id)
    assert made.is_new and made.version
    assert made.version.tags == {
        "stage": "candidate",
        "model_name": "cnn",
        "dataset_name": NAME,
        "dataset_version": "v1",
        "dataset_digest": "0123456789abcdef",
        "git_commit": "c0ffee",
        "run_id": run_id,
        "package_digest": sha256_of(tmp_path / run_id / "extra_files" / CARD),
        "val/f1": "0.9",
        "val/loss": repr(1 - 0.9),
        "val/auroc": "nan",
        "test/f1": "0.89",
        "test/loss": repr(1.01 - 0.9),
    }
    assert (made.version.name, made.version.run_id) == (NAME, run_id)
    assert PENDING not in connect(uri).get_run(run_id).data.tags
    assert made.describe() == f"registered as version {made.version.number} of {NAME}, candidate"
    assert capfd.readouterr().err == ""  # no bar of MLflow's


def test_the_version_is_the_package_of_the_run(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    run_id = a_run(uri, tmp_path)
    version = register(uri, run_id, "another name").version
    assert version and version.name == "another name"
    from mlflow.artifacts import download_artifacts

    copied = download_artifacts(version.source, dst_path=str(tmp_path / "copied"), tracking_uri=uri)
    assert Path(copied, MODEL).read_bytes() == run_id.encode()


def test_a_second_time_makes_no_second_version(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    run_id = a_run(uri, tmp_path)
    first, second = register(uri, run_id), register(uri, run_id)
    assert first.version == second.version
    assert not second.is_new
    assert second.describe() == f"was registered before: version {first.version.number} of {NAME}, candidate"


def test_many_who_register_a_run_at_once_make_one_version(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    run_id = a_run(uri, tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: register(uri, run_id, "contended"), range(8)))
    assert len({each.version.number for each in made if each.version}) == 1
    assert sum(each.is_new for each in made) == 1
    assert numbers_of(client, "contended") == [1]


def test_many_runs_registered_at_once_make_a_version_each(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    runs = [a_run(uri, tmp_path) for _ in range(12)]
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda run_id: register(uri, run_id, "busy"), runs))
    assert sorted(each.version.number for each in made if each.version) == numbers_of(client, "busy") == [*range(1, 13)]


def test_a_run_that_did_not_qualify_is_not_registered_and_says_why(uri: str, tmp_path: Path) -> None:
    made = register(uri, a_run(uri, tmp_path, f1=0.7, is_qualified=False))
    assert made.version is None and not made.is_new
    assert made.describe() == "not registered: the run did not qualify: val f1 0.7, asked for at least 0.8"


def test_a_run_that_was_interrupted_or_thrown_away_is_not_registered(
    uri: str, client: MlflowClient, tmp_path: Path
) -> None:
    assert register(uri, a_run(uri, tmp_path, status="KILLED")).reason == "the run is KILLED, not FINISHED"
    run_id = a_run(uri, tmp_path)
    client.delete_run(run_id)
    assert register(uri, run_id).reason == "the run lies in MLflow's trash"


def test_an_unknown_run_is_refused(uri: str) -> None:
    for run_id in ("0" * 32, "no such thing"):
        with pytest.raises(UserError, match=f"run_id={run_id}: no such run"):
            register(uri, run_id)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (f"extra_files/{CARD}", "the run has no model package among its artifacts"),
        (MODEL, f"its model package lacks {MODEL}, which could not be sent"),
        ("MLmodel", "its model package lacks MLmodel"),
    ],
)
def test_a_package_that_did_not_arrive_whole_is_refused(
    uri: str, client: MlflowClient, tmp_path: Path, lost: str, message: str
) -> None:
    run_id = a_run(uri, tmp_path)
    artifacts = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    (artifacts / PACKAGE / lost).unlink()
    with pytest.raises(UserError, match=f"run_id={run_id}: {message}"):
        register(uri, run_id)


def test_the_package_of_another_run_is_refused(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    run_id, other = a_run(uri, tmp_path), a_run(uri, tmp_path)
    client.log_artifacts(run_id, str(tmp_path / other), PACKAGE)
    with pytest.raises(UserError, match=f"run_id={run_id}: its model package is that of run {other}"):
        register(uri, run_id)


def test_a_card_that_was_altered_is_refused(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    run_id = a_run(uri, tmp_path)
    card = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"), PACKAGE, "extra_files", CARD)
    card.write_bytes(card.read_bytes().replace(b"0.9", b"1.0"))
    with pytest.raises(UserError, match=f"run_id={run_id}: its model package cannot be read .*sha256"):
        register(uri, run_id)


@pytest.mark.parametrize("name", ["a/b", "it's", "..", "x" * 201])
def test_a_name_that_mlflow_or_its_search_cannot_take_is_refused(uri: str, tmp_path: Path, name: str) -> None:
    run_id = a_run(uri, tmp_path)
    with pytest.raises(UserError, match=r"registry\.name=.*: not a name for a registered model"):
        register(uri, run_id, name)
