from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flatfix.registry.journal import Journal, Move, MovedMeanwhile
from flatfix.registry.moves import Choice, Outcome, rollback, to_production, to_staging
from flatfix.registry.register import register
from flatfix.registry.versions import aliases, list_versions
from flatfix.registry.view import Registry
from flatfix.tracking.connection import connect, preflight
from tests.helpers.candidates import NAME, a_run, candidates, numbers_of, some_runs
from tests.helpers.fault_proxy import Cut, FaultProxy, Refuse
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.postgres_server import PostgresServer
from tests.helpers.s3_server import S3Server

NUM_AT_ONCE = 20


class Reader:
    """Follows `@production` while others promote, as serving does, and notes what it sees."""

    def __init__(self, uri: str) -> None:
        self.seen: list[int] = []
        self._uri = uri
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _read(self) -> None:
        client = connect(self._uri)
        while not self._is_over.wait(0.02):
            self.seen.append(int(client.get_model_version_by_alias(NAME, "production").version))


def live(uri: str, number: int, name: str = NAME) -> Outcome:
    """Promote a version as a process of its own would."""
    registry = Registry.open(connect(uri), name)
    return to_production(
        registry,
        lambda view: Choice(view.version(number), "f1", 0.9),
        lambda challenger, incumbent: [],
        why=f"v{number}",
    )


def staged(uri: str, folder: Path, count: int, name: str = NAME) -> Registry:
    """Put candidates into staging, and one more into production."""
    registry = candidates(uri, some_runs(uri, folder, count + 1), name)
    for version in registry.look().versions:
        to_staging(registry, lambda view, version=version: Choice(version))  # type: ignore[misc]
    live(uri, 1, name)
    return registry


def check_history(moves: tuple[Move, ...], promoted: set[int]) -> None:
    """Check that each version went live once, and that every move tells the one before it."""
    lived = [move for move in moves if move.to_stage == "production"]
    assert {move.version for move in lived} == promoted
    assert len(lived) == len(promoted)
    assert [move.replaced for move in lived] == [None, *(move.version for move in lived[:-1])]
    assert [move.number for move in moves] == [*range(1, len(moves) + 1)]
    assert all(move.why == f"v{move.version}" for move in lived)


def check_all_agree(registry: Registry) -> None:
    """Check that aliases and tags say what the journal says, and that one version is live."""
    view, repaired = registry.settle()
    assert repaired == []
    assert [version.number for version in view.versions if version.stage == "production"] == [view.state.production]
    held = aliases(registry.client, NAME)
    assert held == {"production": view.state.production, "previous": view.state.previous[-1]}


def check_twenty_at_once(uri: str, folder: Path, promote_all: Callable[[list[int]], object]) -> None:
    registry = staged(uri, folder, NUM_AT_ONCE)
    numbers = [*range(2, NUM_AT_ONCE + 2)]
    with Reader(uri) as reader:
        promote_all(numbers)
    assert set(reader.seen) <= {1, *numbers}
    assert reader.seen[-1:] != []
    check_history(registry.look().moves, {1, *numbers})
    check_all_agree(registry)


def test_twenty_promotions_at_once_leave_one_version_live_and_a_whole_history(tmp_path: Path) -> None:
    uri = fresh_database(tmp_path)

    def promote_all(numbers: list[int]) -> None:
        with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
            assert all(outcome.move for outcome in pool.map(lambda number: live(uri, number), numbers))

    check_twenty_at_once(uri, tmp_path, promote_all)


def test_promotions_and_rollbacks_at_once_end_as_the_history_says(tmp_path: Path) -> None:
    uri = fresh_database(tmp_path)
    registry = staged(uri, tmp_path, 6)
    for number in (2, 3, 4):
        live(uri, number)

    def move(number: int) -> Outcome:
        return live(uri, number) if number else rollback(Registry.open(connect(uri), NAME))

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(move, [5, 0, 6, 0, 7, 0]))
    assert all(outcome.move for outcome in outcomes[::2])
    made = {outcome.move for outcome in outcomes if outcome.move}
    assert made == set(registry.look().moves[-len(made) :])
    check_all_agree(registry)


PROMOTER = """
import os, signal, sys
from mlflow import MlflowClient
from flatfix.registry.moves import Choice, to_production
from flatfix.registry.view import Registry

class Killed(MlflowClient):
    def set_registered_model_alias(self, *arguments):
        os.kill(os.getpid(), signal.SIGKILL)

registry = Registry.open(Killed(sys.argv[1]), "tires")
to_production(registry, lambda view: Choice(view.version(2)), lambda challenger, incumbent: [])
"""


def test_a_promoter_killed_between_two_writes_is_repaired_by_the_next(tmp_path: Path) -> None:
    uri = fresh_database(tmp_path)
    registry = staged(uri, tmp_path, 2)
    done = subprocess.run([sys.executable, "-c", PROMOTER, uri])
    assert done.returncode == -signal.SIGKILL
    assert aliases(registry.client, NAME) == {"production": 1, "staging": 3}
    outcome = live(uri, 3)  # it goes on from what the journal says
    assert outcome.move and outcome.move.replaced == 2
    check_all_agree(registry)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer, one_s3_server: S3Server
) -> Iterator[MlflowServer]:
    """MLflow as a team has it: several workers, metadata in PostgreSQL, artifacts in S3."""
    if not one_s3_server.is_running:
        one_s3_server.start()
    folder, artifacts = tmp_path_factory.mktemp("server"), f"s3://{one_s3_server.bucket}/mlflow"
    with pytest.MonkeyPatch.context() as monkeypatch:
        one_s3_server.become("owner", monkeypatch)
        preflight(postgres.uri, "Default")  # makes MLflow's tables, which takes longer than a server may to start
        with MlflowServer(folder, database_uri=postgres.uri, artifacts=artifacts, num_workers=2) as server:
            yield server


PROMOTERS = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from tests.integration.test_registry_concurrency import live

uri, numbers = sys.argv[1], json.loads(sys.argv[2])
with ThreadPoolExecutor(len(numbers)) as pool:
    assert all(outcome.move for outcome in pool.map(lambda number: live(uri, number), numbers))
"""


@pytest.mark.service
def test_twenty_promotions_at_once_from_four_processes_through_a_server(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    def promote_all(numbers: list[int]) -> None:
        commands = [
            [sys.executable, "-c", PROMOTERS, mlflow_server.uri, json.dumps(numbers[part::4])] for part in range(4)
        ]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
        for process in processes:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said

    check_twenty_at_once(mlflow_server.uri, tmp_path, promote_all)


@pytest.mark.service
def test_many_register_at_once_through_a_server(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    uri = mlflow_server.uri
    runs = some_runs(uri, tmp_path, 8)
    with ThreadPoolExecutor(24) as pool:
        made = list(pool.map(lambda run_id: register(uri, run_id, "busy"), 3 * runs))
    assert sum(each.is_new for each in made) == len(runs)
    versions = list_versions(connect(uri), "busy")
    assert sorted(version.run_id for version in versions) == sorted(runs)
    assert [version.number for version in versions] == numbers_of(connect(uri), "busy")  # no double is left


@pytest.mark.service
def test_parameters_are_written_once_in_postgresql(postgres: PostgresServer) -> None:
    client = connect(postgres.uri)
    journal = Journal.create(client, "raced for")
    start = threading.Barrier(NUM_AT_ONCE)

    def race(index: int) -> int:
        mine = Journal(connect(postgres.uri), journal.run_id)
        won = 0
        for number in range(1, 11):
            start.wait()
            try:
                mine.append(Move(number, "promote", index, "", "staging", None, None, None, f"w{index}", "", None))
                won += 1
            except MovedMeanwhile:
                pass
        return won

    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        assert sum(pool.map(race, range(NUM_AT_ONCE))) == 10
    assert len(journal.moves()) == 10


@pytest.mark.service
@pytest.mark.parametrize(("fault", "name"), [(Cut(0), "lost answers"), (Refuse(502), "a proxy that refuses")])
def test_a_move_survives_short_outages_and_is_made_once(
    mlflow_server: MlflowServer, tmp_path: Path, fault: Cut | Refuse, name: str
) -> None:
    uri = mlflow_server.uri
    with FaultProxy(mlflow_server.ports[0]) as proxy:
        registry = staged(uri, tmp_path, 2, name)
        for call in ("log-parameter", "registered-models/alias", "model-versions/set-tag", "runs/get"):
            proxy.on(call, fault, times=2)
        before = len(registry.look().moves)
        live(proxy.endpoint, 2, name)
        assert len(proxy.faults) == 8
        assert len(registry.look().moves) == before + 1
        proxy.on("model-versions/create", fault, times=1)
        run_id = a_run(uri, tmp_path)
        made = register(proxy.endpoint, run_id, name)
        assert made.version and made.version == list_versions(registry.client, name)[-1]
