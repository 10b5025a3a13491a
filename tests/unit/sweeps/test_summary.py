from __future__ import annotations

import json
import math

import pytest
from optuna.distributions import IntDistribution

from flatfix.sweeps.summary import Summary, duration, figure, setting, share, summarise
from flatfix.sweeps.trials import GIVEN_BACK, OUTCOME
from tests.helpers.studies import add, empty

PARAMS = {"optimizer.lr": 0.0023141592, "model": "cnn"}


def summary(study, objectives=("accuracy",), max_epochs=10) -> Summary:
    return summarise(study, objectives, max_epochs, lambda trial: f"python train.py model={trial.params['model']}")


def mixed():
    """Six epochs cost 5 + 6 x 10 seconds: five before the first epoch."""
    study = empty()
    add(study, "complete", [0.8], params=PARAMS, epochs=6, seconds=65)
    add(study, "complete", [0.8942], params=PARAMS, epochs=6, seconds=65)
    add(study, "pruned", params=PARAMS, epochs=1, seconds=15, reported={1: 0.3})
    add(study, "failed", params=PARAMS, epochs=0, seconds=0, reason="RuntimeError:\n  out of memory")
    add(study, "failed", params=PARAMS, reported={1: 0.2, 2: 0.3}, reason="killed by SIGKILL", **{OUTCOME: ""})
    add(study, "complete", [0.7], params=PARAMS, epochs=6, seconds=65, retry_of=[4])
    add(study, "failed", **{GIVEN_BACK: True})
    add(study, "running", params=PARAMS, reported={1: 0.5}, epochs=0)
    return study


def test_trials_that_were_given_back_or_tried_again_count_apart():
    said = summary(mixed())
    assert (said.num_complete, said.num_pruned, said.num_failed) == (3, 1, 1)
    assert (said.num_retried, said.num_running) == (1, 1)
    assert said.counts == "5 trials: 3 complete, 1 pruned, 1 failed; 1 tried again; 1 not over"


def test_what_every_epoch_cost_is_counted_those_of_the_dead_and_the_running_too():
    assert summary(mixed()).epochs == 6 + 6 + 1 + 0 + 2 + 6 + 1
    assert summary(mixed()).seconds == 65 + 65 + 15 + 65


def test_seconds_saved_are_those_of_epochs_without_the_start_of_a_job():
    said = summary(mixed(), max_epochs=6)
    assert said.epochs_saved == 5
    assert said.seconds_saved == pytest.approx(5 * 10)


def test_where_all_jobs_are_alike_seconds_saved_are_in_proportion():
    study = empty()
    add(study, "pruned", epochs=2, seconds=20)
    assert summary(study).seconds_saved == pytest.approx(80)


def test_a_pruned_trial_that_tried_another_length_saved_what_was_left_of_that():
    study = empty()
    space = {"trainer.max_epochs": IntDistribution(1, 50)}
    add(study, "pruned", params={"trainer.max_epochs": 30}, space=space, epochs=10)
    add(study, "pruned", params={"trainer.max_epochs": 5}, space=space, epochs=5)
    assert summary(study).epochs_saved == 20


def test_the_terminal_is_told_everything_and_the_command_stands_alone_on_its_line():
    assert summary(mixed(), max_epochs=6).lines() == [
        "sweep tires: 5 trials: 3 complete, 1 pruned, 1 failed; 1 tried again; 1 not over",
        "trained 22 epochs in 4 min of jobs; pruning saved 5 epochs (19 %), about 50 s",
        "first failure: trial 3: RuntimeError: out of memory",
        "best: trial 1 with accuracy 0.8942, run 00000000000000000000000000000001",
        "  optimizer.lr=0.002314 model=cnn",
        "train it again:",
        "python train.py model=cnn",
    ]


def test_the_first_of_equally_good_trials_is_the_best_and_less_loss_is_better():
    study = empty(("minimize",))
    for value in (0.5, 0.3, 0.3, 0.4):
        add(study, "complete", [value], params=PARAMS)
    (best,) = summary(study, ["loss"]).winners
    assert (best.number, best.values) == (1, {"loss": 0.3})


def test_a_value_that_is_not_finite_never_wins():
    study = empty(("minimize",))
    add(study, "complete", [-math.inf], params=PARAMS)
    assert summary(study, ["loss"]).winners == ()


def test_of_two_objectives_those_win_that_none_beats_in_both():
    study = empty(("maximize", "minimize"))
    for values in ([0.8, 1.0], [0.9, 5.0], [0.85, 5.0], [0.7, 2.0], [0.9, 4.0], [0.9, 4.0]):
        add(study, "complete", values, params=PARAMS)
    said = summary(study, ["accuracy", "latency_ms"])
    assert [winner.number for winner in said.winners] == [4, 0]
    assert said.lines()[-5:] == [
        "beaten by none in both accuracy and latency_ms: 2 trials",
        "trial 4 with accuracy 0.9000, latency_ms 4: optimizer.lr=0.002314 model=cnn",
        "  python train.py model=cnn",
        "trial 0 with accuracy 0.8000, latency_ms 1: optimizer.lr=0.002314 model=cnn",
        "  python train.py model=cnn",
    ]


def test_of_a_long_front_the_terminal_shows_five():
    study = empty(("maximize", "minimize"))
    for number in range(8):
        add(study, "complete", [number / 10, number], params=PARAMS)
    lines = summary(study, ["accuracy", "latency_ms"]).lines()
    assert lines[-1] == "and 3 more, which the page of the sweep lists"
    assert sum(line.startswith("trial ") for line in lines) == 5


def test_where_every_trial_failed_the_first_reason_is_told_in_one_line():
    study = empty()
    add(study, "failed", reason="x" * 5000)
    add(study, "failed", reason="another")
    said = summary(study)
    assert said.first_failure == (0, "x" * 5000)
    *_, failure, best = said.lines()
    assert failure.startswith("first failure: trial 0: xxx") and len(failure) < 400
    assert best == "best: none, for no trial is complete"


def test_a_study_without_a_trial_can_be_summed_up():
    assert summary(empty()).lines()[0] == "sweep tires: 0 trials: 0 complete, 0 pruned, 0 failed"


def test_the_file_holds_what_the_terminal_shortens():
    read = json.loads(summary(mixed()).to_json())
    assert read["winners"][0]["params"] == PARAMS
    assert read["winners"][0]["command"] == "python train.py model=cnn"
    assert (read["epochs"], read["first_failure"]) == (22, [3, "RuntimeError: out of memory"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8942123, "0.8942"),
        (0.9, "0.9000"),
        (23.4142, "23.41"),
        (11176512, "11,176,512"),
        (1e-5, "1e-05"),
        (0, "0.0000"),
    ],
)
def test_values_have_four_digits(value, text):
    assert figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00231415, "0.002314"), (64, "64"), (True, "true"), (None, "null"), ("a" * 60, f"{'a' * 19}…{'a' * 19}")],
)
def test_parameters_are_written_as_on_a_command_line(value, text):
    assert setting(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (48.4, "48 s"), (720, "12 min"), (4320, "1 h 12 min"), (7199, "2 h 0 min")]
)
def test_times_are_short(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("part", "text"), [(0, "0 %"), (0.001, "<1 %"), (0.344, "34 %"), (1, "100 %")])
def test_shares_are_whole_percentages(part, text):
    assert share(part) == text
