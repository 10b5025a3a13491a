"""Sweeps from the command line, with real short trainings that are killed, fail and go on."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from flatfix.sweeps.trials import REASON, RUN_ID, counted, replaced
from tests.helpers.compose import ROOT
from tests.helpers.postgres_server import PostgresServer
from tests.helpers.sweeps import LONG, SPACE, Sweeps, has_begun, kill

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


@pytest.fixture
def sweeps(tmp_path: Path) -> Sweeps:
    return Sweeps(tmp_path)


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_sweeper_cost_nothing_but_time(sweeps: Sweeps) -> None:
    words = (*SPACE, LONG, "sweep.name=s", "sweep.n_trials=6", "sweep.workers=2", "pruner=none")
    with sweeps.running(*words) as sweeper:
        begun = sweeps.wait_for(lambda trials: any(map(has_begun, trials)))
        victim = next(trial for trial in begun if has_begun(trial))
        kill(victim)
        sweeps.wait_for(lambda trials: replaced(trials) and sum(trial.state is COMPLETE for trial in trials) >= 2)
        sweeps.wait_for(lambda trials: any(map(has_begun, trials)))
        sweeper.send_signal(signal.SIGKILL)
        sweeper.wait()
    finished = [trial.number for trial in sweeps.trials() if trial.state is COMPLETE]
    folders = {number: (sweeps.folder / "runs" / "s" / str(number)).stat().st_ino for number in finished}

    done = sweeps.run(*words)

    assert done.returncode == 0, done.stdout + done.stderr
    trials = counted(sweeps.trials())
    assert [trial.state for trial in trials] == [COMPLETE] * 6
    assert victim.number in replaced(sweeps.trials())
    assert "killed by SIGKILL" in sweeps.trials()[victim.number].user_attrs[REASON]
    assert {number: (sweeps.folder / "runs" / "s" / str(number)).stat().st_ino for number in finished} == folders
    sweeps.assert_that_study_and_mlflow_agree()
    assert sweeps.parent().info.status == "FINISHED"


@pytest.mark.slow
def test_bad_trials_fail_with_their_reasons_and_the_sweep_goes_on(sweeps: Sweeps) -> None:
    words = (
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=grid",
        "sweep.name=s",
        "sweep.workers=2",
        "model=wrn_28_10",
        "dataset.batch_size=64",
    )
    done = sweeps.run(*words, "+model.options.width=choice(1,100000)", "optimizer.lr=choice(0.001,1e30)")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = counted(sweeps.trials())
    reasons = {trial.user_attrs[REASON] for trial in trials if trial.state is FAIL}
    assert Counter(trial.state for trial in trials) == {COMPLETE: 1, FAIL: 3}, reasons
    assert any("memory" in reason for reason in reasons), reasons
    assert any("diverged" in reason for reason in reasons), reasons
    sweeps.assert_that_study_and_mlflow_agree()


@pytest.mark.slow
def test_a_sweep_whose_trials_all_fail_ends_with_1_and_the_first_reason(sweeps: Sweeps) -> None:
    done = sweeps.run("hydra/sweeper=optuna", "sweep.name=s", "sweep.n_trials=2", "optimizer.lr=interval(1e29,1e30)")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "every trial failed" in done.stderr
    assert "diverged" in done.stderr
    assert sweeps.parent().info.status == "FAILED"


@pytest.mark.slow
def test_a_pruned_trial_is_pruned_in_the_study_and_ends_cleanly_in_mlflow(sweeps: Sweeps) -> None:
    words = ("sweep.name=s", "sweep.n_trials=6", "trainer.max_epochs=4", "pruner=median", "pruner.n_startup_trials=1")
    done = sweeps.run(*SPACE, *words, "hydra.sweeper.sampler.seed=3")
    assert done.returncode == 0, done.stdout + done.stderr
    pruned = [trial for trial in sweeps.trials() if trial.state is PRUNED]
    assert pruned, "no trial was pruned"
    sweeps.assert_that_study_and_mlflow_agree()
    for trial in pruned:
        run = sweeps.client.get_run(trial.user_attrs[RUN_ID])
        assert run.data.tags["pruned"] == "true"
        assert int(run.data.tags["pruned_epoch"]) == trial.last_step < 4
        assert len(sweeps.client.get_metric_history(run.info.run_id, "val/accuracy")) == trial.last_step
    assert "pruning saved" in done.stdout


@pytest.mark.slow
def test_ctrl_c_lets_the_running_trials_end_and_the_printed_command_goes_on(sweeps: Sweeps) -> None:
    with sweeps.running(*SPACE, LONG, "sweep.n_trials=4", "sweep.workers=2", "sweep.name=s", "pruner=none") as sweeper:
        sweeps.wait_for(lambda trials: sum(map(has_begun, trials)) == 2)
        sweeper.send_signal(signal.SIGINT)
        said, _ = sweeper.communicate(timeout=300)
    assert sweeper.returncode == 75, said
    assert [trial.state for trial in sweeps.trials()] == [COMPLETE] * 2, said
    assert sweeps.parent().info.status == "KILLED"
    (line,) = [line for line in said.splitlines() if line.startswith("to go on: ")]
    command = shlex.split(line.removeprefix("to go on: "))

    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert [trial.state for trial in sweeps.trials()] == [COMPLETE] * 4
    sweeps.assert_that_study_and_mlflow_agree()


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_whose_launcher_runs_jobs_in_its_own_process(sweeps: Sweeps) -> None:
    words = (*SPACE, "hydra/launcher=basic", "sweep.n_trials=3", "sweep.name=s", "trainer.max_epochs=4000")
    with sweeps.running(*words) as sweeper:
        sweeps.wait_for(lambda trials: any(map(has_begun, trials)))
        sweeper.send_signal(signal.SIGINT)
        said, _ = sweeper.communicate(timeout=120)
    assert sweeper.returncode == 75, said
    assert [trial.state for trial in counted(sweeps.trials())] == [TrialState.WAITING]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_running_trials_which_the_next_command_tries_again(sweeps: Sweeps) -> None:
    words = (*SPACE, "sweep.n_trials=2", "sweep.workers=2", "sweep.name=s", "pruner=none", "sweep.max_retries=0")
    with sweeps.running(*words, "trainer.max_epochs=4000") as sweeper:
        begun = sweeps.wait_for(lambda trials: sum(map(has_begun, trials)) == 2)
        sweeper.send_signal(signal.SIGINT)
        assert sweeper.stdout
        heard = next(line for line in sweeper.stdout if "no further trial begins" in line)  # signals do not queue
        sweeper.send_signal(signal.SIGINT)
        said = heard + sweeper.communicate(timeout=120)[0]
    assert sweeper.returncode == 75, said
    assert {run.info.status for run in sweeps.children()} == {"KILLED"}

    done = sweeps.run(*words)

    assert done.returncode == 0, done.stdout + done.stderr
    again = counted(sweeps.trials())
    assert [trial.state for trial in again] == [COMPLETE] * 2
    assert sorted(trial.params["optimizer.lr"] for trial in again) == sorted(
        trial.params["optimizer.lr"] for trial in begun
    )


@pytest.mark.slow
def test_the_best_trial_alone_registers_and_its_command_trains_it_again(sweeps: Sweeps) -> None:
    done = sweeps.run(*SPACE, "sweep.name=s", "sweep.n_trials=3", "callbacks.qualify.min_accuracy=0.01")
    assert done.returncode == 0, done.stdout + done.stderr
    best = max(sweeps.trials(), key=lambda trial: trial.value or 0)
    (version,) = sweeps.client.search_model_versions("name='tires'")
    assert version.run_id == best.user_attrs[RUN_ID]
    artifacts = {file.path for file in sweeps.client.list_artifacts(sweeps.parent().info.run_id, "findings")}
    assert {"findings/sweep.html", "findings/trials.csv", "findings/history.png"} <= artifacts
    summary = json.loads((sweeps.folder / "runs" / "s" / "findings" / "summary.json").read_text())
    command = shlex.split(summary["winners"][0]["command"])
    assert command[:2] == ["python", "train.py"]

    again = subprocess.run([sys.executable, *command[1:], f"paths.output={sweeps.folder}"], cwd=ROOT)

    assert again.returncode == 0
    (run,) = [run for run in sweeps.search("") if not {"sweep", "multirun"} & run.data.tags.keys()]
    history = sweeps.client.get_metric_history(run.info.run_id, "val/accuracy")
    assert max(metric.value for metric in history) == best.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "space"),
    [
        ("random", ()),
        ("cmaes", ()),
        ("grid", ("optimizer.lr=choice(0.001,0.01)", "optimizer.weight_decay=0.01", "dataset.batch_size=16")),
        ("pareto", ("model=choice(cnn,tiny_vgg)", "dataset.image_size=choice(32,40)")),
    ],
)
def test_every_kind_of_sweep_runs(sweeps: Sweeps, choice: str, space: tuple[str, ...]) -> None:
    words = (f"sweep={choice}", "sweep.name=s", "sweep.n_trials=3", "trainer.max_epochs=1", "sweep.workers=2")
    done = sweeps.run(*words, *space)
    assert done.returncode == 0, done.stdout + done.stderr
    states = Counter(trial.state for trial in counted(sweeps.trials()))
    assert states == {COMPLETE: 2 if choice == "grid" else 3}
    if choice == "pareto":
        assert (sweeps.folder / "runs" / "s" / "findings" / "pareto.png").is_file()
        assert "beaten by none in both accuracy and latency_ms" in done.stdout


@pytest.mark.slow
def test_the_options_of_hydra_optuna_sweeper_work_under_their_own_names(sweeps: Sweeps) -> None:
    storage = f"sqlite:///{sweeps.folder}/theirs.db"
    options = {
        "n_trials": "2",
        "n_jobs": "2",
        "study_name": "theirs",
        "storage": storage,
        "direction": "minimize",
        "max_failure_rate": "0.5",
        "custom_search_space": "tests.helpers.sweeps.with_seeds",
    }
    words = [f"hydra.sweeper.{name}={value}" for name, value in options.items()]
    done = sweeps.run("hydra/sweeper=optuna", "hydra/sweeper/sampler=qmc", *words, "trainer.max_epochs=1")
    assert done.returncode == 0, done.stdout + done.stderr
    study = optuna.load_study(study_name="theirs", storage=storage)
    assert [trial.state for trial in study.trials] == [COMPLETE] * 2
    assert study.direction.name == "MINIMIZE"
    seeds = [int(sweeps.client.get_run(trial.user_attrs[RUN_ID]).data.params["seed"]) for trial in study.trials]
    assert seeds == [trial.params["seed"] for trial in study.trials]
    results = (sweeps.folder / "runs" / "theirs" / "optimization_results.yaml").read_text()
    assert f"best_value: {study.best_value}" in results


@pytest.mark.slow
def test_a_plain_multirun_has_a_parent_with_a_table_of_means_and_deviations_over_seeds(sweeps: Sweeps) -> None:
    done = sweeps.run("optimizer=adam,sgd", "seed=1,2,3", "sweep.workers=2")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sweeps.children()
    assert len(runs) == 6
    parent = sweeps.parent().info
    assert parent.status == "FINISHED"
    path = sweeps.client.download_artifacts(parent.run_id, "findings/combinations.csv", str(sweeps.folder))
    table = list(csv.DictReader(Path(path).open(encoding="utf-8")))
    assert [row["combination"] for row in table] == ["optimizer=adam", "optimizer=sgd"]
    for row in table:
        name = row["combination"].removeprefix("optimizer=")
        mine = [run.data.metrics["test/accuracy"] for run in runs if run.data.params["optimizer_type"].lower() == name]
        assert len(mine) == 3
        mean = sum(mine) / 3
        assert float(row["test/accuracy mean"]) == pytest.approx(mean)
        deviation = (sum((value - mean) ** 2 for value in mine) / 2) ** 0.5
        assert float(row["test/accuracy deviation"]) == pytest.approx(deviation)


@pytest.mark.slow
def test_a_job_of_a_plain_multirun_that_fails_ends_no_other(sweeps: Sweeps) -> None:
    done = sweeps.run("optimizer.lr=1e30,0.001", "sweep.workers=1")
    assert done.returncode == 2
    assert Counter(run.info.status for run in sweeps.children()) == {"FAILED": 1, "FINISHED": 1}
    assert "failed: optimizer.lr=1e+30: training diverged in epoch 1" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("optimizer.lrr=interval(0.1,0.2)",), "optimizer.lrr"),
        (("optimizer.lr=interval(-1,1)",), "optimizer.lr: -1"),
        (("scheduler=choice(cosine,cosin)",), "scheduler=cosin: no such choice"),
        ((), "nothing to search"),
        (("hydra/sweeper/sampler=grid", "optimizer.lr=interval(0.1,0.2)"), "a grid needs values"),
        (("optimizer.lr=interval(0.1,0.2)", "sweep.workers=0"), "sweep.workers: 0 is out of range"),
        (("optimizer.lr=interval(0.1,0.2)", "hydra.sweeper.n_trails=3"), "Did you mean 'n_trials'?"),
        (("optimizer.lr=interval(0.1,0.2)", "sweep.name=a/b"), "sweep.name=a/b"),
        (("optimizer.lr=interval(0.1,0.2)", "sweep.storage=mysqll://x"), "sweep.storage=mysqll://x"),
        (("optimizer.lr=interval(0.1,0.2)", "sweep.objectives=[accuracy,speed]"), "sweep.objectives=speed"),
        (("optimizer.lr=interval(0.1,0.2)", "hydra/launcher=basic", "sweep.workers=2"), "sweep.workers=2: Basic"),
        (("optimizer.lr=interval(0.1,0.2)", "hydra/launcher=joblib", "sweep.workers=2"), "sweep.workers=2: Joblib"),
    ],
)
def test_what_makes_no_sweep_is_refused_before_anything_begins(
    sweeps: Sweeps, words: tuple[str, ...], option: str
) -> None:
    done = sweeps.run("hydra/sweeper=optuna", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert option in done.stderr
    assert not (sweeps.folder / "runs").exists()


@pytest.mark.slow
def test_a_sweep_that_goes_on_elsewhere_or_under_torchrun_is_refused(sweeps: Sweeps) -> None:
    assert sweeps.run(*SPACE, "sweep.name=s", "sweep.n_trials=1").returncode == 0
    moved = sweeps.run("hydra/sweeper=optuna", "sweep.name=s", "optimizer.lr=choice(0.1,0.2)")
    assert moved.returncode == 2
    assert "sweep.name=s: that study looks for optimizer.lr" in moved.stderr
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    ranks = subprocess.run(sweeps.command(*SPACE), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ranks.returncode == 2
    assert "WORLD_SIZE=2" in ranks.stderr
    assert "sweep.workers=N" in ranks.stderr


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.mark.service
def test_two_sweepers_on_one_postgresql_finish_as_many_trials_as_one(tmp_path: Path, postgres: PostgresServer) -> None:
    sweeps = Sweeps(tmp_path, postgres.uri)
    words = (*SPACE, "sweep.name=s", "sweep.n_trials=7", "pruner=none", "sweep.workers=2")
    with sweeps.running(*words) as first, sweeps.running(*words) as second:
        said = [sweeper.communicate(timeout=400)[0] for sweeper in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    assert [trial.state for trial in counted(sweeps.trials())] == [COMPLETE] * 7
    assert len(sweeps.children()) == 7
    sweeps.assert_that_study_and_mlflow_agree()
