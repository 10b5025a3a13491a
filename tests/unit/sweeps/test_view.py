from __future__ import annotations

import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from flatfix.sweeps.trials import GIVEN_BACK
from flatfix.sweeps.view import View, label, short_names
from tests.helpers.studies import add, empty, searched


def test_trials_keep_their_numbers_and_lose_what_no_figure_shows():
    study = searched()
    view = View.of(study, ["accuracy"])
    copies = view.study.trials
    assert [copy.number for copy in copies] == [trial.number for trial in study.trials]
    assert all(copy.user_attrs == {} for copy in copies)
    complete = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert [(c.number, c.value) for c in copies if c.value and c.state is TrialState.COMPLETE] == [
        (trial.number, trial.value) for trial in complete
    ]
    assert view.study.metric_names == ["validation accuracy"]
    assert view.study.directions == study.directions


def test_looking_at_a_study_changes_nothing():
    study = searched(6)
    before = study.trials
    View.of(study, ["accuracy"])
    assert study.trials == before


def test_what_is_not_a_number_is_not_shown():
    study = empty(("minimize",))
    add(study, "complete", [math.inf], params={"optimizer.lr": 0.001})
    add(study, "complete", [0.5], params={"optimizer.lr": 0.002}, reported={1: math.nan, 2: math.inf, 3: 0.5})
    add(study, "failed", reported={1: -math.inf}, **{GIVEN_BACK: True})
    view = View.of(study, ["loss"])
    assert [row.number for row in view.complete] == [1]
    assert view.rows[0].state == "failed"
    assert view.curves == {0: [], 1: [(3, 0.5)], 2: []}


def test_a_parameter_with_one_value_and_one_that_no_complete_trial_has_are_not_shown():
    study = empty()
    space = {
        "a": FloatDistribution(0, 1),
        "b": CategoricalDistribution(["only"]),
        "c": FloatDistribution(0, 1),
    }
    add(study, "complete", [0.5], params={"a": 0.1, "b": "only"}, space=space)
    add(study, "pruned", params={"a": 0.2, "c": 0.3}, space=space)
    view = View.of(study, ["accuracy"])
    assert list(view.spaces) == ["a"]
    assert [dict(row.params) for row in view.rows] == [{"a": 0.1}, {"a": 0.2}]


def test_bounds_that_somebody_moved_while_continuing_are_joined():
    study = empty()
    for low, high, log in ((1, 10, True), (5, 40, True)):
        space = {"lr": FloatDistribution(low, high, log=log), "depth": IntDistribution(low, high)}
        add(study, "complete", [0.5], params={"lr": 7, "depth": 7}, space=space)
    view = View.of(study, ["accuracy"])
    assert view.spaces == {"lr": FloatDistribution(1, 40, log=True), "depth": IntDistribution(1, 40)}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["optimizer.lr", "model"], ["lr", "model"]),
        (["optimizer.lr", "scheduler.lr"], ["optimizer.lr", "scheduler.lr"]),
        ([], []),
        (["a.a_very_long_name_of_an_option_indeed"], ["a_very_lon…ion_indeed"]),
    ],
)
def test_names_are_as_short_as_they_can_be_told_apart(options, names):
    assert short_names(options) == names


def test_objectives_are_named_in_words():
    words = ["validation F1", "validation AUROC", "validation accuracy", "ms a picture", "parameters of the model"]
    assert [label(name) for name in ("f1", "auroc", "accuracy", "latency_ms", "num_parameters")] == words


def test_importances_find_the_parameter_that_matters_and_are_the_same_each_time():
    study = empty()
    for number in range(8):
        params = {"optimizer.lr": 0.001 * (1 + number % 4), "loss.label_smoothing": 0.01 * (number * 7 % 13)}
        add(study, "complete", [params["optimizer.lr"]], params=params)
    (shares,) = View.of(study, ["accuracy"]).importances
    assert shares["lr"] > 0.7
    assert View.of(study, ["accuracy"]).importances == [shares]


def test_where_all_trials_reached_the_same_nothing_is_important():
    study = empty()
    for number in range(5):
        add(study, "complete", [0.5], params={"optimizer.lr": 0.001 * (number + 1)})
    assert View.of(study, ["accuracy"]).importances == [{}]
