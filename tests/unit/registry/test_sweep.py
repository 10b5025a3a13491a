from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from flatfix.errors import UserError
from flatfix.registry.sweep import register_best
from flatfix.registry.versions import list_versions
from tests.helpers.candidates import a_run, log_package
from tests.helpers.mlflow_db import fresh_database


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_database(tmp_path_factory.mktemp("mlflow"))


def test_the_first_run_that_qualified_becomes_a_candidate_and_its_siblings_do_not(uri: str, tmp_path: Path) -> None:
    missed, killed = a_run(uri, tmp_path, is_qualified=False), a_run(uri, tmp_path, status="KILLED")
    second, third = a_run(uri, tmp_path), a_run(uri, tmp_path)
    (made,) = register_best(uri, [missed, killed, second, third], "first")
    assert made.is_new
    assert [version.run_id for version in list_versions(MlflowClient(uri), "first")] == [second]


def test_where_the_runs_are_of_two_datasets_the_first_of_each_becomes_a_candidate(uri: str, tmp_path: Path) -> None:
    runs = [a_run(uri, tmp_path, digest=digest) for digest in ("this", "that", "this")]
    made = register_best(uri, runs, None)
    assert [each.version.run_id for each in made if each.version] == runs[:2]


def test_of_runs_that_did_not_qualify_none_is_registered_and_each_says_why(uri: str, tmp_path: Path) -> None:
    runs = [a_run(uri, tmp_path, is_qualified=False, f1=f1) for f1 in (0.7, 0.6)]
    (made,) = register_best(uri, runs, "unqualified")
    assert made.version is None
    assert "none of the 2 runs can be" in made.describe()
    assert "did not qualify: val f1 0.7, asked for at least 0.8" in made.reason
    assert "did not qualify: val f1 0.6" in made.reason


def test_a_second_time_registers_nothing_new(uri: str, tmp_path: Path) -> None:
    runs = [a_run(uri, tmp_path)]
    (first,), (second,) = (register_best(uri, runs, "again") for _ in range(2))
    assert second.version == first.version
    assert not second.is_new


def test_a_run_without_a_package_is_given_one_and_only_where_it_is_the_best(uri: str, tmp_path: Path) -> None:
    missed = a_run(uri, tmp_path, is_qualified=False, has_package=False)
    runs = [a_run(uri, tmp_path, has_package=False) for _ in range(2)]
    packaged: list[str] = []

    def make(run_id: str) -> None:
        packaged.append(run_id)
        log_package(uri, tmp_path, run_id)

    (made,) = register_best(uri, [missed, *runs], "packaged", make)
    assert made.version
    assert made.version.run_id == runs[0]
    assert packaged == [runs[0]]


def test_a_run_that_cannot_have_a_package_leaves_its_place_to_the_next(uri: str, tmp_path: Path) -> None:
    runs = [a_run(uri, tmp_path, has_package=False), a_run(uri, tmp_path)]

    def refuse(run_id: str) -> None:
        raise UserError("torch cannot export it")

    (made,) = register_best(uri, runs, "next", refuse)
    assert made.version
    assert made.version.run_id == runs[1]
    (made,) = register_best(uri, runs[:1], "next", refuse)
    assert "torch cannot export it" in made.reason
