from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.trial import FrozenTrial, TrialState

from flatfix.sweeps.storage import open_storage
from flatfix.sweeps.trials import RUN_ID, counted, replaced
from tests.helpers import slurm
from tests.helpers.compose import ROOT, TINY
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.ray_cluster import RayCluster
from tests.helpers.server import wait_until

pytestmark = pytest.mark.slow

TIMEOUT_S = 300  # of a whole sweep; 60 s on a quiet machine
N_TRIALS = 3
SEARCH = (
    "hydra/sweeper=optuna",
    "hydra/sweeper/sampler=random",
    "optimizer.lr=tag(log,interval(0.0001,0.01))",
    "pruner=none",
    "trainer.max_epochs=12",
    f"sweep.n_trials={N_TRIALS}",
)
# The grid begins with the second rate; at the first one the network stays what it was, and half of the answers wrong.
ONE_GOOD_ONE_BAD = (
    "hydra/sweeper=optuna",
    "hydra/sweeper/sampler=grid",
    "+hydra.sweeper.sampler.seed=0",
    "optimizer.lr=choice(1e-9,0.0125)",
    "pruner.n_startup_trials=1",
    "trainer.max_epochs=12",
)


class Sweep:
    """A sweep by `python train.py -m` in a process of its own, over a study and an MLflow of its own."""

    def __init__(self, output: Path, environment: dict[str, str] | None = None) -> None:
        fresh_database(output)
        self._output = output
        self._environment = environment
        self._client = MlflowClient(f"sqlite:///{output}/mlflow.db")
        self._storage = open_storage(f"sqlite:///{output}/sweeps.db", heartbeat_s=2)

    def begin(self, *overrides: str) -> subprocess.Popen[bytes]:
        """Begin the sweep, or go on with it."""
        tiny = [word for word in TINY if not word.startswith("trainer.max_epochs")]
        command = [sys.executable, str(ROOT / "train.py"), "-m", *tiny, *overrides]
        command += [f"paths.output={self._output}", "sweep.name=night", "sweep.heartbeat_s=2"]
        return subprocess.Popen(command, cwd=ROOT, env=self._environment)

    def run(self, *overrides: str) -> None:
        """Run the sweep to its end."""
        assert self.begin(*overrides).wait(TIMEOUT_S) == 0

    @property
    def trials(self) -> list[FrozenTrial]:
        try:
            return optuna.load_study(study_name="night", storage=self._storage).trials
        except KeyError:  # it is about to be made
            return []

    def training(self) -> list[FrozenTrial]:
        """Return the trials in the middle of their training."""
        return [each for each in self.trials if each.state is TrialState.RUNNING and each.intermediate_values]

    def of_mlflow(self) -> list[Run]:
        """Return the runs of the jobs."""
        (experiment,) = [each for each in self._client.search_experiments() if each.name == "flatfix"]
        runs = self._client.search_runs([experiment.experiment_id])
        return [run for run in runs if MLFLOW_PARENT_RUN_ID in run.data.tags]

    def check(self, n_trials: int) -> None:
        """Check that so many trials finished, none twice, and that MLflow says of each what the study says."""
        trials = self.trials
        finished = [each for each in counted(trials) if each.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        assert len(finished) == len(counted(trials)) == n_trials
        runs = {run.info.run_id: run for run in self.of_mlflow()}
        assert len(runs) == len(trials), "a trial ran twice, or MLflow lacks one"
        for trial in trials:
            run = runs[trial.user_attrs[RUN_ID]]
            assert run.data.tags["trial"] == str(trial.number)
            if trial.number in replaced(trials):
                assert (trial.state, run.info.status) == (TrialState.FAIL, "KILLED")
            else:
                assert run.info.status == "FINISHED"
                assert ("pruned" in run.data.tags) == (trial.state is TrialState.PRUNED)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster() as cluster:
        yield cluster


def on_ray(cluster: RayCluster) -> tuple[str, ...]:
    return ("hydra/launcher=ray", f"hydra.launcher.ray.init.address='{cluster.address}'")


@pytest.fixture
def sweep_on_slurm(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, slurm.install(tmp_path / "slurm"))


def begin_and_wait(sweep: Sweep, num_training: int, overrides: Sequence[str]) -> subprocess.Popen[bytes]:
    process = sweep.begin(*overrides)
    wait_until(
        lambda: process.poll() is not None or len(sweep.training()) == num_training, TIMEOUT_S, "trials that train"
    )
    assert process.poll() is None, "the sweep ended before"
    return process


def jobs_of(sweep: Sweep, trials: Sequence[FrozenTrial]) -> list[psutil.Process]:
    """Return the processes that train these trials."""
    return [psutil.Process(int(trial.user_attrs["worker"].split()[-2])) for trial in trials]


def test_a_trial_that_is_worse_from_the_start_is_pruned_on_ray(cluster: RayCluster, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.run(*ONE_GOOD_ONE_BAD, *on_ray(cluster))
    assert [trial.state for trial in sweep.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    sweep.check(2)


def test_a_trial_whose_process_is_killed_on_ray_is_tried_again(cluster: RayCluster, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    process = begin_and_wait(sweep, 2, [*SEARCH, "sweep.workers=2", *on_ray(cluster)])
    (job, _) = jobs_of(sweep, sweep.training())
    job.kill()
    assert process.wait(TIMEOUT_S) == 0
    sweep.check(N_TRIALS)
    assert len(replaced(sweep.trials)) == 1


def test_trials_that_ran_on_ray_when_their_sweeper_was_killed_are_tried_again_by_the_next(
    cluster: RayCluster, tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path)
    words = [*SEARCH, "sweep.workers=2", *on_ray(cluster)]
    process = begin_and_wait(sweep, 2, words)
    jobs = jobs_of(sweep, sweep.training())
    process.kill()
    process.wait()
    psutil.wait_procs(jobs, timeout=30)
    assert not any(job.is_running() for job in jobs), "the cluster still trains for nobody"
    sweep.run(*words)
    sweep.check(N_TRIALS)
    assert replaced(sweep.trials) == {0, 1}


def test_of_two_nodes_one_may_die_during_a_trial(cluster: RayCluster, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    process = begin_and_wait(sweep, 2, [*SEARCH, "sweep.workers=2", *on_ray(cluster)])
    cluster.kill_second_node()  # the last test of the cluster
    assert process.wait(TIMEOUT_S) == 0
    sweep.check(N_TRIALS)
    assert len(replaced(sweep.trials)) == 1
    (reason,) = {trial.user_attrs["reason"] for trial in sweep.trials if trial.number in replaced(sweep.trials)}
    assert reason == "its node of the Ray cluster died"


def test_a_trial_that_is_worse_from_the_start_is_pruned_under_slurm(sweep_on_slurm: Sweep) -> None:
    sweep_on_slurm.run(*ONE_GOOD_ONE_BAD, "hydra/launcher=submitit")
    assert [trial.state for trial in sweep_on_slurm.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    sweep_on_slurm.check(2)


@pytest.mark.parametrize("how", [signal.SIGUSR2, signal.SIGKILL])
def test_a_trial_that_slurm_ends_is_tried_again(how: signal.Signals, sweep_on_slurm: Sweep) -> None:
    process = begin_and_wait(sweep_on_slurm, 1, [*SEARCH, "hydra/launcher=submitit"])
    (job,) = jobs_of(sweep_on_slurm, sweep_on_slurm.training())
    os.kill(job.pid, how)
    assert process.wait(TIMEOUT_S) == 0
    sweep_on_slurm.check(N_TRIALS)
    assert len(replaced(sweep_on_slurm.trials)) == 1


def test_jobs_of_slurm_outlive_their_sweeper_and_the_next_takes_what_they_found(sweep_on_slurm: Sweep) -> None:
    words = [*SEARCH, "sweep.workers=2", "hydra/launcher=submitit"]
    process = begin_and_wait(sweep_on_slurm, 2, words)
    process.kill()
    process.wait()
    sweep_on_slurm.run(*words)
    sweep_on_slurm.check(N_TRIALS)
    assert not replaced(sweep_on_slurm.trials), "what was still training was begun again"
