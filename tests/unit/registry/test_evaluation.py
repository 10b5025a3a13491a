from __future__ import annotations

from pathlib import Path

import pytest

from flatfix.config.options import EVALUATE
from flatfix.errors import UserError
from flatfix.registry.evaluation import choose_version, run
from flatfix.registry.view import Registry
from tests.helpers.candidates import NAME, candidates, some_runs
from tests.helpers.compose import compose
from tests.helpers.mlflow_db import fresh_database


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Three versions, and no alias."""
    uri = fresh_database(tmp_path_factory.mktemp("mlflow"))
    return candidates(uri, some_runs(uri, tmp_path_factory.mktemp("runs"), 3))


def test_without_production_staging_is_meant_then_the_newest_and_that_is_said(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(alias: str = "production", number: int | None = None) -> int:
        return choose_version(registry.client, NAME, alias, number).number

    assert chosen() == 3
    assert capsys.readouterr().out == "tires has nothing in production: the newest version, 3, is evaluated\n"
    registry.client.set_registered_model_alias(NAME, "staging", "2")
    assert chosen() == 2
    assert capsys.readouterr().out == "tires has nothing in production: @staging, version 2, is evaluated\n"
    registry.client.set_registered_model_alias(NAME, "production", "1")
    assert (chosen(), chosen("staging"), chosen(number=3)) == (1, 2, 3)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"alias=stagin: .*Did you mean 'staging'"):
        chosen("stagin")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["csv=a.csv"], r"csv=a\.csv: only plot=only reads it\. Leave it out"),
        (["plot=only"], "csv: plot=only needs a table with columns label and prediction"),
        (["plot=only", "csv=a.csv", "data=new"], "data=new: plot=only reads csv and nothing else"),
        (["plot=only", "csv=gone.csv"], r"csv=gone\.csv: No such file"),
        (["data=new", "dataset.version=v1"], r"dataset\.version=v1: data=new takes its place"),
        (["data=new", "split=val"], "split=val: data=new takes its place"),
        (["version=1", "alias=staging"], "alias=staging: version=1 takes its place"),
        (["log_mlflow=false", "run_name=a"], "run_name=a: log_mlflow=false makes no run"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused_before_anything_is_touched(
    tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(compose("evaluate", EVALUATE, tmp_path, f"outdir={tmp_path}/out", *words))
    assert not list(tmp_path.iterdir())
