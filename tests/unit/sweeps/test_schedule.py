from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState

from flatfix.errors import UserError
from flatfix.sweeps.schedule import Schedule
from flatfix.sweeps.storage import open_storage
from flatfix.sweeps.trials import GIVEN_BACK, INTERRUPTED, OUTCOME, REASON, WORKER, Outcome, counted, replaced
from flatfix.sweeps.worker import this_process

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


def good(trial: Trial) -> Outcome:
    return Outcome("complete", (trial.params["x"],))


class Bench:
    """A study in a database, and schedules over it."""

    def __init__(self, folder: Path, sampler: optuna.samplers.BaseSampler | None = None) -> None:
        self.url = f"sqlite:///{folder}/sweeps.db"
        self.storage = open_storage(self.url, 30)
        self.study = optuna.create_study(
            study_name="study", storage=self.storage, sampler=sampler or optuna.samplers.RandomSampler(seed=0)
        )
        self.ran: list[int] = []

    def schedule(self, run: Callable[[Trial], Outcome] = good, n_trials: int = 6, **options: Any) -> Schedule:
        def noted(trial: Trial) -> Outcome:
            self.ran.append(trial.number)
            return run(trial)

        arguments = {"workers": 1, "heartbeat_s": 30, "max_retries": 2, **options}
        study, storage = self.study, self.storage
        return Schedule(
            study,
            storage,
            configure=lambda trial: trial.suggest_float("x", 0, 1),
            run=noted,
            n_trials=n_trials,
            **arguments,
        )

    def work(self, run: Callable[[Trial], Outcome] = good, n_trials: int = 6, **options: Any) -> None:
        self.schedule(run, n_trials, **options).work()

    @property
    def states(self) -> list[TrialState]:
        return [trial.state for trial in counted(self.study.trials)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("workers", [1, 4])
def test_as_many_trials_finish_as_were_asked_for_and_none_twice(bench: Bench, workers: int) -> None:
    bench.work(n_trials=9, workers=workers)
    assert bench.states == [COMPLETE] * 9
    assert sorted(bench.ran) == list(range(9))


def test_a_worker_that_is_free_does_not_wait_for_the_slowest(bench: Bench) -> None:
    others_are_done, num_done = threading.Event(), Counter[str]()

    def run(trial: Trial) -> Outcome:
        if trial.number == 0:
            assert others_are_done.wait(30), "the other worker waited for this trial"
        else:
            num_done["others"] += 1
            if num_done["others"] == 5:
                others_are_done.set()
        return good(trial)

    bench.work(run, n_trials=6, workers=2)
    assert bench.states == [COMPLETE] * 6


def test_what_fails_is_counted_with_its_reason_and_the_sweep_goes_on(bench: Bench) -> None:
    def run(trial: Trial) -> Outcome:
        return Outcome("failed", reason="no memory") if trial.number % 2 else good(trial)

    bench.work(run)
    assert Counter(bench.states) == {COMPLETE: 3, FAIL: 3}
    assert {trial.user_attrs.get(REASON) for trial in bench.study.trials if trial.state is FAIL} == {"no memory"}


def test_a_trial_whose_process_dies_is_tried_again_with_the_same_parameters_and_counts_once(bench: Bench) -> None:
    def run(trial: Trial) -> Outcome:
        return Outcome("died", reason="killed by SIGKILL") if trial.number == 1 else good(trial)

    bench.work(run, n_trials=4)
    dead, again = bench.study.trials[1], bench.study.trials[2]
    assert dead.state is FAIL
    assert again.params == dead.params
    assert REASON not in again.user_attrs, "the new attempt begins with the words of the old one"
    assert replaced(bench.study.trials) == {1}
    assert bench.states == [COMPLETE] * 4


def test_a_trial_that_always_dies_is_given_up_after_its_retries(bench: Bench) -> None:
    def run(trial: Trial) -> Outcome:
        return Outcome("died", reason="killed") if trial.params["x"] == worst else good(trial)

    worst = 0.25
    bench.study.enqueue_trial({"x": worst})
    bench.work(run, n_trials=3, max_retries=2)
    assert sum(trial.params["x"] == worst for trial in bench.study.trials) == 3
    assert Counter(bench.states) == {COMPLETE: 2, FAIL: 1}


def test_a_trial_that_was_interrupted_goes_on_with_the_next_command_whatever_its_retries(bench: Bench) -> None:
    schedule = bench.schedule(lambda trial: (schedule.stop(), Outcome("died", reason=INTERRUPTED))[1], max_retries=0)
    schedule.work()
    assert not schedule.is_complete
    bench.work(n_trials=2, max_retries=0)
    assert bench.states == [COMPLETE] * 2
    assert bench.study.trials[1].params == bench.study.trials[0].params


def test_an_outcome_that_the_job_stored_counts_more_than_how_its_process_ended(bench: Bench) -> None:
    def run(trial: Trial) -> Outcome:
        trial.set_user_attr(OUTCOME, Outcome("complete", (0.5,), epochs=3).to_json())
        return Outcome("died", reason="killed after it had stored its outcome")

    bench.work(run, n_trials=1)
    assert bench.study.best_value == 0.5


def test_a_pruned_trial_is_pruned_in_the_study(bench: Bench) -> None:
    def run(trial: Trial) -> Outcome:
        trial.report(0.7, 1)
        return Outcome("pruned", epochs=1)

    bench.work(run, n_trials=2)
    assert bench.states == [PRUNED] * 2


GONE = this_process().rsplit(" ", 1)[0] + " 1.00"  # this process's number, which another had before


@pytest.mark.parametrize("stored", [None, Outcome("complete", (0.5,))], ids=["no outcome", "an outcome"])
def test_a_trial_that_a_killed_sweeper_left_is_tried_again_unless_its_outcome_is_known(
    bench: Bench, stored: Outcome | None
) -> None:
    left = bench.study.ask()
    left.suggest_float("x", 0, 1)
    left.set_user_attr(WORKER, GONE)
    if stored:
        left.set_user_attr(OUTCOME, stored.to_json())
    bench.work(n_trials=2)
    assert bench.states == [COMPLETE] * 2
    assert bench.study.trials[0].state is (COMPLETE if stored else FAIL)
    assert len(bench.ran) == (1 if stored else 2)


def test_a_trial_that_runs_elsewhere_is_waited_for_and_left_alone(bench: Bench) -> None:
    other = bench.study.ask()
    other.set_user_attr(WORKER, this_process())

    def finish_the_other() -> None:
        while len(bench.ran) < 2:
            time.sleep(0.01)
        bench.study.tell(other, 0.5)

    elsewhere = threading.Thread(target=finish_the_other)
    elsewhere.start()
    bench.work(n_trials=3)
    elsewhere.join()
    assert bench.ran == [1, 2]
    assert bench.states == [COMPLETE] * 3


def test_a_trial_without_a_sign_of_life_is_found_dead_whatever_machine_it_ran_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.storage = RDBStorage(bench.url, heartbeat_interval=1, grace_period=1)
    bench.study = optuna.load_study(study_name="study", storage=bench.storage)
    silent = bench.study.ask()
    silent.set_user_attr(WORKER, "another machine 17 3.00")
    bench.storage.record_heartbeat(silent._trial_id)
    bench.work(n_trials=2, heartbeat_s=1)
    assert bench.states == [COMPLETE] * 2
    assert bench.study.trials[0].state is FAIL


def test_a_trial_whose_sweeper_ended_as_it_asked_for_it_is_found_dead_too(bench: Bench, tmp_path: Path) -> None:
    bench.study.ask()  # and no word of who runs it
    bench.schedule()._bury()
    with sqlite3.connect(tmp_path / "sweeps.db") as connection:
        beats = connection.execute("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'")
        assert beats.rowcount == 1
    bench.work(n_trials=2)
    assert bench.states == [COMPLETE] * 2
    assert bench.study.trials[0].state is FAIL


def test_what_a_job_stored_just_before_it_ended_is_not_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    left = bench.study.ask()
    left.suggest_float("x", 0, 1)
    left.set_user_attr(WORKER, GONE)

    def ends_now(worker: str) -> bool:
        left.set_user_attr(OUTCOME, Outcome("complete", (0.5,)).to_json())
        return True

    monkeypatch.setattr("flatfix.sweeps.schedule.is_gone", ends_now)
    bench.work(n_trials=1)
    assert bench.study.best_value == 0.5


def test_a_trial_that_was_being_given_back_is_not_tried_again(bench: Bench) -> None:
    left = bench.study.ask()
    left.set_user_attr(WORKER, GONE)
    left.set_user_attr(GIVEN_BACK, True)
    bench.work(n_trials=2)
    assert bench.states == [COMPLETE] * 2
    assert bench.ran == [1, 2]


def test_two_sweepers_on_one_study_finish_as_many_trials_as_one(bench: Bench) -> None:
    schedules = []
    for _ in range(2):
        other = Bench.__new__(Bench)
        other.url, other.ran = bench.url, bench.ran
        other.storage = open_storage(bench.url, 30)
        other.study = optuna.load_study(study_name="study", storage=other.storage)
        schedules.append(other.schedule(n_trials=7, workers=2))
    threads = [threading.Thread(target=schedule.work) for schedule in schedules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [schedule.fault for schedule in schedules] == [None, None]
    assert any(schedule.was_last for schedule in schedules)
    assert bench.states == [COMPLETE] * 7
    given_back = [trial.number for trial in bench.study.trials if trial.user_attrs.get(GIVEN_BACK)]
    assert not set(given_back) & set(bench.ran)
    assert len(bench.ran) == len(set(bench.ran)) == 7


def test_nothing_begins_after_the_time_is_up_or_too_many_have_failed(bench: Bench) -> None:
    bench.work(timeout_s=1e-9)
    assert bench.states == []
    schedule = bench.schedule(lambda trial: Outcome("failed", reason="no"), max_failure_rate=0.5)
    schedule.work()
    assert schedule.has_given_up
    assert bench.states == [FAIL]


def test_a_grid_is_gone_through_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, optuna.samplers.GridSampler({"x": [0.0, 0.5, 1.0]}, seed=0))
    bench.work(n_trials=3, workers=2)
    assert sorted(trial.params["x"] for trial in bench.study.trials) == [0.0, 0.5, 1.0]


@pytest.mark.filterwarnings("ignore:.*is re-evaluating")
def test_a_point_of_a_grid_that_could_not_be_tried_is_tried_by_the_next_command(tmp_path: Path) -> None:
    bench = Bench(tmp_path, optuna.samplers.GridSampler({"x": [0.0, 0.5, 1.0]}, seed=0))

    def run(trial: Trial) -> Outcome:
        raise UserError("sbatch is not here")

    with pytest.raises(UserError):
        bench.work(run, n_trials=3)
    bench.work(n_trials=3)
    assert sorted(trial.params["x"] for trial in counted(bench.study.trials)) == [0.0, 0.5, 1.0]


def test_the_last_point_of_a_grid_may_be_that_of_a_trial_without_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, optuna.samplers.GridSampler({"x": [0.0, 1.0]}, seed=0))
    bench.work(n_trials=1)
    pointless = bench.storage.get_trial(bench.storage.create_new_trial(bench.study._study_id))
    assert bench.schedule()._tell(pointless, Outcome("failed"))
    assert bench.study.trials[pointless.number].state is FAIL


def test_where_no_trial_can_run_the_sweep_ends_with_the_error_and_counts_none(bench: Bench) -> None:
    def run(trial: Trial) -> Outcome:
        raise UserError("sbatch is not here")

    with pytest.raises(UserError, match="sbatch"):
        bench.work(run, workers=2)
    assert bench.states == []


def test_a_sampler_that_fails_ends_the_sweep_with_its_error_and_leaves_no_trial_running(bench: Bench) -> None:
    schedule = bench.schedule()
    schedule._configure = lambda trial: trial.suggest_categorical("x", [])  # type: ignore[assignment]
    with pytest.raises(ValueError):
        schedule.work()
    assert [trial.state for trial in bench.study.trials] == [FAIL]
