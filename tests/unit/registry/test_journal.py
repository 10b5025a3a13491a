from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from flatfix.errors import UserError
from flatfix.registry.journal import EXPERIMENT, MAX_CHARS, GateResult, Journal, Move, MovedMeanwhile
from flatfix.registry.versions import JOURNAL_TAG
from flatfix.tracking.connection import connect
from tests.helpers.mlflow_db import fresh_database

MOVE = Move(
    number=1,
    action="promote",
    version=3,
    from_stage="staging",
    to_stage="production",
    replaced=2,
    metric="f1",
    value=0.9125,
    who="zoë@línea-2",
    when="2026-11-22T06:00:00+00:00",
    why='"better" – 缺陷\n',
    forced=False,
    gates=(GateResult("not_worse", True, "+0.0125 [-0.001, 0.026]"), GateResult("better", None, "off")),
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return connect(fresh_database(tmp_path_factory.mktemp("mlflow")))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name


def journals(client: MlflowClient, name: str) -> list[str]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = 'history of {name}'")
    return [run.info.run_id for run in runs]


def test_moves_are_read_as_they_were_written(client: MlflowClient, name: str) -> None:
    journal = Journal.create(client, name)
    assert journal.moves() == []
    second = replace(MOVE, number=2, replaced=None, metric=None, value=None, why=None, gates=())
    journal.append(MOVE)
    journal.append(second)
    assert Journal.open(client, name).moves() == [MOVE, second]


def test_a_move_of_a_later_flatfix_is_not_misread(client: MlflowClient, name: str) -> None:
    journal = Journal.create(client, name)
    client.log_param(journal.run_id, "move-000001", '{"schema_version": 2, "id": "0", "gates": []}')
    with pytest.raises(UserError, match="move 1 of the history has schema_version 2, where this Flatfix reads 1"):
        journal.moves()


def test_a_number_is_taken_once(client: MlflowClient, name: str) -> None:
    journal = Journal.create(client, name)
    journal.append(MOVE)
    with pytest.raises(MovedMeanwhile):
        journal.append(replace(MOVE, version=4))
    with pytest.raises(MovedMeanwhile):  # not even the same words twice: they are two moves
        journal.append(MOVE)
    assert journal.moves() == [MOVE]


def test_gates_that_say_much_are_cut_to_what_mlflow_keeps(client: MlflowClient, name: str) -> None:
    journal = Journal.create(client, name)
    wordy = replace(
        MOVE, why="y" * 1000, gates=tuple(GateResult(f"gate {index}", True, "x" * 5000) for index in range(9))
    )
    journal.append(wordy)
    (read,) = journal.moves()
    assert [gate.name for gate in read.gates] == [gate.name for gate in wordy.gates]
    assert all(gate.detail.endswith("x…") and len(gate.detail) >= 200 for gate in read.gates)
    assert read.why == wordy.why
    (text,) = client.get_run(journal.run_id).data.params.values()
    assert len(text) <= MAX_CHARS
    assert json.loads(text)["schema_version"] == 1


def test_many_who_create_a_journal_at_once_get_the_same_one(client: MlflowClient, name: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Journal.create(connect(client.tracking_uri), name).run_id, range(8)))
    assert len(set(made)) == 1
    assert journals(client, name) == made[:1]


def test_a_registered_model_of_another_maker_is_refused(client: MlflowClient, name: str) -> None:
    client.create_registered_model(name)
    for get in (Journal.open, Journal.create):
        with pytest.raises(UserError, match=rf"registry\.name={name}: .* Flatfix did not make it"):
            get(client, name)


def test_a_history_in_the_trash_is_refused_with_the_way_back(client: MlflowClient, name: str) -> None:
    journal = Journal.create(client, name)
    client.delete_run(journal.run_id)
    with pytest.raises(UserError, match=f"mlflow runs restore --run-id {journal.run_id}"):
        Journal.open(client, name)


def test_a_history_that_was_deleted_for_good_is_refused(client: MlflowClient, name: str) -> None:
    journal = Journal.create(client, name)
    client.delete_run(journal.run_id)
    SqlAlchemyStore(client.tracking_uri, "unused")._hard_delete_run(journal.run_id)  # as `mlflow gc` does
    for get in (Journal.open, Journal.create):
        with pytest.raises(UserError, match=f"its history, run {journal.run_id} .* was deleted from MLflow for good"):
            get(client, name)


def test_the_history_outlives_a_renaming(client: MlflowClient, name: str) -> None:
    Journal.create(client, name).append(MOVE)
    client.rename_registered_model(name, "renamed")
    assert Journal.open(client, "renamed").moves() == [MOVE]


def test_a_move_that_mlflow_does_not_take_is_an_error(client: MlflowClient, name: str) -> None:
    journal = Journal.create(client, name)
    client.delete_run(journal.run_id)
    with pytest.raises(Exception, match="must be in the 'active' state"):
        journal.append(MOVE)


def test_the_tag_of_a_registered_model_names_its_journal(client: MlflowClient, name: str) -> None:
    journal = Journal.create(client, name)
    assert client.get_registered_model(name).tags == {JOURNAL_TAG: journal.run_id}
