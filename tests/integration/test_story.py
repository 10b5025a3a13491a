"""From runs to production and back, over real pictures: what docs/registry.md tells."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from flatfix.config.exit_codes import ExitCode
from flatfix.config.options import EVALUATE, PROMOTE
from flatfix.inference.package import open_package
from flatfix.inference.predictor import Predictor
from flatfix.registry import command, evaluation
from flatfix.registry.packages import fetch_package
from flatfix.registry.view import Registry
from flatfix.tracking.connection import connect
from flatfix.training.result import RunResult
from flatfix.training.run import train
from tests.helpers.compose import compose, compose_train
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.postgres_server import PostgresServer
from tests.helpers.s3_server import S3Server
from tests.helpers.shared_data import shared_pictures

ELPV = ("dataset=elpv", "dataset.image_size=32", "model.weights=null", "model.freeze=none", "augment=dihedral")
MIDDLING = ("model=cnn", "trainer.max_epochs=2", "optimizer.lr=0.001")
WORSE = ("model=tiny_vgg", "trainer.max_epochs=1", "optimizer.lr=0.0001")
BETTER = ("model=cnn", "trainer.max_epochs=6", "optimizer.lr=0.003")


@dataclass
class Team:
    """People who train, evaluate and promote with the same store, cache and MLflow."""

    output: Path
    uri: str
    name: str
    dataset: tuple[str, ...]
    store: tuple[str, ...] = ()
    num_runs: int = 0

    def train(self, *overrides: str) -> RunResult:
        self.num_runs += 1
        return train(
            compose_train(
                self.output,
                f"paths.run={self.output}/runs/{self.num_runs}",
                f"tracking.uri={self.uri}",
                "tracking.system_metrics=false",
                "callbacks.qualify.min_accuracy=0.1",
                "report=false",
                *self.dataset,
                *self.store,
                *overrides,
            )
        )

    def promote(self, *overrides: str) -> ExitCode:
        return command.run(
            compose("promote", PROMOTE, self.output, f"tracking.uri={self.uri}", *self.store, *overrides)
        )

    def evaluate(self, *overrides: str) -> ExitCode:
        return evaluation.run(
            compose("evaluate", EVALUATE, self.output, f"tracking.uri={self.uri}", *self.store, *overrides)
        )

    @property
    def registry(self) -> Registry:
        return Registry.open(connect(self.uri), self.name)

    @property
    def live(self) -> int | None:
        """What a reader of the alias gets."""
        alias = connect(self.uri).get_registered_model(self.name).aliases.get("production")
        return None if alias is None else int(alias)


def story(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    """Three models: the first goes live, a worse one is refused, a better one replaces it and is rolled back."""
    middling, worse = team.train(*MIDDLING), team.train(*WORSE)
    assert middling.package
    assert worse.package
    assert [version.stage for version in team.registry.look().versions] == ["candidate", "candidate"]
    assert team.evaluate("alias=production") is ExitCode.DONE
    assert "version 2" in capsys.readouterr().out, "it did not say what it fell back to"

    assert team.promote("metric=F1") is ExitCode.DONE
    assert team.evaluate() is ExitCode.DONE  # of what is in staging, as nothing is live
    assert team.promote("metric=F1", "stage=production") is ExitCode.DONE
    assert team.live == 1

    assert team.promote("metric=f1_score") is ExitCode.DONE
    capsys.readouterr()
    assert team.promote("metric=F1", "stage=production") is ExitCode.NO
    refusal = capsys.readouterr().out
    assert re.search(r"not_worse +REFUSED .*significantly worse.* p = ", refusal)
    assert team.live == 1

    better = team.train(*BETTER)
    assert team.promote("metric=F1") is ExitCode.DONE
    assert team.promote("metric=F1", "stage=production") is ExitCode.DONE
    assert team.live == 3

    package = fetch_package(connect(team.uri), team.registry.look().versions[2], team.output / "cache")
    Predictor(package).prove()
    assert package.digest == open_package(Path(str(better.package))).digest

    assert team.promote("action=rollback", 'reason="an alarm"') is ExitCode.DONE
    assert team.live == 1
    capsys.readouterr()
    assert team.promote("action=history") is ExitCode.DONE
    told = capsys.readouterr().out
    assert "an alarm" in told
    moves = [(move.action, move.version, move.to_stage, move.replaced) for move in team.registry.look().moves]
    assert moves == [
        ("promote", 1, "staging", None),
        ("promote", 1, "production", None),
        ("promote", 2, "staging", None),
        ("promote", 3, "staging", None),
        ("promote", 3, "production", 1),
        ("rollback", 1, "production", 3),
    ]
    assert [version.stage for version in team.registry.look().versions] == ["production", "staging", "archived"]


@pytest.mark.usefixtures("undrawn")
def test_three_models_of_solar_cells_go_their_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story(Team(tmp_path, fresh_database(tmp_path), "elpv", ELPV), capsys)


@pytest.mark.slow
def test_three_models_of_cifar10_go_their_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shared_pictures("cifar10", tmp_path, per_folder=1000)
    words = ("dataset=cifar10", f"dataset.source.root={root}", "dataset.source.download=false")
    story(Team(tmp_path, fresh_database(tmp_path), "cifar10", words), capsys)


@pytest.mark.service
@pytest.mark.usefixtures("undrawn")
def test_the_same_over_a_server_with_postgresql_and_s3(
    tmp_path: Path, s3_server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        PostgresServer() as postgres,
        MlflowServer(
            tmp_path / "mlflow", database_uri=postgres.uri, artifacts=f"s3://{s3_server.bucket}/mlflow"
        ) as mlflow,
    ):
        store = ("store=s3", f"store.uri=s3://{s3_server.bucket}/{tmp_path.name}")
        story(Team(tmp_path, mlflow.uri, "elpv", (*ELPV, "dataset.publish=true"), store), capsys)
