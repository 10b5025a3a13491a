from __future__ import annotations

import math
import sqlite3
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from optuna.pruners import MedianPruner, NopPruner

from flatfix.config.exit_codes import ExitCode
from flatfix.errors import UserError
from flatfix.sweeps import job as jobs
from flatfix.sweeps.trial_job import TrialJob
from flatfix.sweeps.trials import FOLDER, INTERRUPTED, RUN_ID, WORKER, Outcome
from flatfix.sweeps.worker import this_process
from flatfix.training.result import RunResult

PRUNER = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2}


class Asked:
    """A study with trials that were asked for, and the config of the job of one of them."""

    def __init__(self, folder: Path, num_objectives: int = 1) -> None:
        self.url = f"sqlite:///{folder}/sweeps.db"
        self.study = optuna.create_study(study_name="study", storage=self.url, directions=["maximize"] * num_objectives)

    def job(self, number: int, pruner: optuna.pruners.BasePruner | None = None) -> TrialJob:
        return TrialJob(self.url, "study", number, pruner=pruner or NopPruner(), heartbeat_s=30, folder="here")

    def run(self, train: Any, objectives: tuple[str, ...] = ("accuracy",)) -> Outcome:
        """Run the job of a new trial, and return what the trial knows of its end."""
        number = self.study.ask().number
        sweep = {"trial": number, "heartbeat_s": 30, "objectives": list(objectives)}
        try:
            jobs.run({"sweep": sweep, "pruner": PRUNER, "paths": {"run": "here"}}, train)
        except Exception:
            pass
        outcome = Outcome.of(self.study.trials[number])
        assert outcome is not None
        return outcome


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked(tmp_path)
    hydra = OmegaConf.create({"hydra": {"sweeper": {"storage": asked.url, "study_name": "study"}}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", hydra)
    return asked


def finished(**values: Any) -> RunResult:
    return RunResult("abc", "here", "FINISHED", ExitCode.DONE, **values)


def test_a_job_tells_its_trial_where_it_is_and_what_each_epoch_reached(asked: Asked) -> None:
    def train(cfg: object, report: Any, began: Any) -> RunResult:
        began("abc")
        assert not report(1, 0.5)
        assert not report(2, 0.7)
        return finished(objectives={"accuracy": 0.7})

    outcome = asked.run(train)
    (trial,) = asked.study.trials
    assert (outcome.state, list(outcome.values), outcome.epochs) == ("complete", [0.7], 2)
    assert trial.intermediate_values == {1: 0.5, 2: 0.7}
    assert trial.state is optuna.trial.TrialState.RUNNING, "only a sweeper changes the state"
    assert (trial.user_attrs[RUN_ID], trial.user_attrs[FOLDER]) == ("abc", "here")
    assert trial.user_attrs[WORKER] == this_process()


def test_a_job_is_told_to_end_where_the_pruner_would_and_not_before(asked: Asked) -> None:
    for value in (0.9, 0.8):
        trial = asked.study.ask()
        trial.report(value, 1)
        asked.study.tell(trial, value)
    assert not asked.job(asked.study.ask().number, MedianPruner(n_startup_trials=2)).report(1, 0.86)
    assert asked.job(asked.study.ask().number, MedianPruner(n_startup_trials=2)).report(1, 0.5)
    assert not asked.job(asked.study.ask().number, MedianPruner(n_startup_trials=3)).report(1, 0.5)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (finished(is_pruned=True), Outcome("pruned")),
        (finished(objectives={"accuracy": math.nan}), Outcome("failed", (), "accuracy is nan")),
        (finished(objectives={"accuracy": math.inf}), Outcome("failed", (), "accuracy is inf")),
        (finished(), Outcome("failed", (), "accuracy is nan")),
        (RunResult("abc", "here", "KILLED", ExitCode.INTERRUPTED), Outcome("died", (), INTERRUPTED)),
    ],
)
def test_every_end_of_a_training_has_its_outcome(asked: Asked, result: RunResult, expected: Outcome) -> None:
    outcome = asked.run(lambda cfg, report, began: result)
    assert (outcome.state, outcome.reason) == (expected.state, expected.reason)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(UserError("optimizer.lr: too large"), "optimizer.lr: too large"), (MemoryError("full"), "MemoryError: full")],
)
def test_what_a_training_raises_is_stored_and_raised_again(asked: Asked, error: Exception, reason: str) -> None:
    def train(cfg: object, report: Any, began: Any) -> RunResult:
        raise error

    outcome = asked.run(train)
    assert (outcome.state, outcome.reason) == ("failed", reason)


def test_two_objectives_are_both_stored_and_nothing_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(tmp_path, num_objectives=2)
    hydra = OmegaConf.create({"hydra": {"sweeper": {"storage": asked.url, "study_name": "study"}}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", hydra)

    def train(cfg: object, report: Any, began: Any) -> RunResult:
        assert not report(1, 0.5)
        return finished(objectives={"latency_ms": 3.0, "accuracy": 0.5})

    assert list(asked.run(train, ("accuracy", "latency_ms")).values) == [0.5, 3.0]


def test_a_database_that_goes_away_costs_the_report_and_not_the_training(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = asked.job(asked.study.ask().number)
    with sqlite3.connect(tmp_path / "sweeps.db") as connection:
        connection.execute("DROP TABLE trial_intermediate_values")
    assert not job.report(1, 0.5)
    assert "epoch 1 is not reported" in capsys.readouterr().err


def test_a_job_beats_the_heart_of_its_trial(asked: Asked, tmp_path: Path) -> None:
    number = asked.study.ask().number
    job = TrialJob(asked.url, "study", number, pruner=NopPruner(), heartbeat_s=1, folder="here")
    with job.beating():
        deadline = time.monotonic() + 20
        while not _num_beats(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert _num_beats(tmp_path) == 1


def _num_beats(folder: Path) -> int:
    with sqlite3.connect(folder / "sweeps.db") as connection:
        return int(connection.execute("SELECT count(*) FROM trial_heartbeats").fetchone()[0])
