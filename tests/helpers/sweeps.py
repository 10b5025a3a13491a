"""Multiruns from the command line, and what study and MLflow know of them afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from flatfix.sweeps.trials import RUN_ID, WORKER, counted
from tests.helpers.compose import ROOT, TINY
from tests.helpers.mlflow_db import fresh_database

SPACE = ("hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=0", "optimizer.lr=tag(log,interval(1e-4,1e-2))")
LONG = "trainer.max_epochs=40"  # some seconds


class Sweeps:
    """A folder in which `python train.py -m …` writes, with small pictures and a small network.

    Args:
        folder: an empty one.
        storage: of the studies, None for a file in the folder.
    """

    def __init__(self, folder: Path, storage: str | None = None) -> None:
        self.folder = folder
        self.uri = fresh_database(folder)
        self.client = MlflowClient(self.uri)
        self.storage = storage or f"sqlite:///{folder}/sweeps.db"

    def command(self, *words: str) -> list[str]:
        """Return the command line."""
        paths = (f"paths.output={self.folder}", f"sweep.storage={self.storage}")
        return [sys.executable, "train.py", "-m", *paths, *TINY, *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a multirun to its end."""
        return subprocess.run(self.command(*words), cwd=ROOT, env=_environment(), capture_output=True, text=True)

    @contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Start a multirun, and kill what is left of it and its jobs afterwards."""
        with subprocess.Popen(
            self.command(*words),
            cwd=ROOT,
            env=_environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                yield process
            finally:
                family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
                for each in [*family, process]:
                    with_no_such_process(each.kill)

    def trials(self, name: str = "s") -> list[FrozenTrial]:
        """Return the trials of a study, none where there is no study yet."""
        try:
            return optuna.load_study(study_name=name, storage=self.storage).trials
        except Exception:  # the tables are being made
            return []

    def wait_for(self, condition: Callable[[list[FrozenTrial]], object], timeout_s: float = 240) -> list[FrozenTrial]:
        """Return the trials as soon as they are as they should be."""
        deadline = time.monotonic() + timeout_s
        while not condition(trials := self.trials()):
            assert time.monotonic() < deadline, f"still {[trial.state.name for trial in trials]}"
            time.sleep(0.2)
        return trials

    def parent(self) -> Run:
        """Return the run of the multirun."""
        (parent,) = self.search("tags.multirun = 'true'")
        return parent

    def children(self) -> list[Run]:
        """Return the runs of its jobs."""
        return self.search(f"tags.`mlflow.parentRunId` = '{self.parent().info.run_id}'")

    def search(self, condition: str) -> list[Run]:
        """Return the runs of the experiment that fulfil a condition."""
        experiment = self.client.get_experiment_by_name("flatfix")
        assert experiment is not None
        return list(self.client.search_runs([experiment.experiment_id], condition))

    def assert_that_study_and_mlflow_agree(self) -> None:
        """Compare every trial with its run: who succeeded, what it reached, and that nothing is left running."""
        trials = self.trials()
        runs = {run.info.run_id: run for run in self.children()}
        for trial in counted(trials):
            run = runs[trial.user_attrs[RUN_ID]]
            assert run.data.tags["trial"] == str(trial.number)
            assert (run.info.status == "FINISHED") == (trial.state is not TrialState.FAIL), (trial, run.info.status)
            if trial.state is TrialState.COMPLETE:
                best = max(metric.value for metric in self.client.get_metric_history(run.info.run_id, "val/accuracy"))
                assert trial.value == best
        assert "RUNNING" not in {run.info.status for run in runs.values()}
        assert TrialState.RUNNING not in {trial.state for trial in trials}
        used = [trial.user_attrs[RUN_ID] for trial in counted(trials)]
        assert len(used) == len(set(used))


def with_seeds(cfg: object, trial: optuna.Trial) -> None:
    """Have a trial search for its seed: what `custom_search_space` names."""
    trial.suggest_int("seed", 1, 100)


def kill(trial: FrozenTrial) -> None:
    """Kill the process that trains a trial."""
    os.kill(int(trial.user_attrs[WORKER].rsplit(" ", 2)[1]), signal.SIGKILL)


def has_begun(trial: FrozenTrial) -> bool:
    """Tell whether a trial trains: it has reported an epoch."""
    return trial.state is TrialState.RUNNING and bool(trial.intermediate_values)


def with_no_such_process(action: Callable[[], object]) -> None:
    """Do something to a process that may have ended."""
    try:
        action()
    except psutil.NoSuchProcess:
        pass


def _environment() -> dict[str, str]:
    """Return that of the tests: two jobs at a time have a core each."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
