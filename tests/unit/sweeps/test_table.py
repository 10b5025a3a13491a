from __future__ import annotations

import csv
import math

from flatfix.sweeps.table import rows, write_csv
from flatfix.sweeps.trials import GIVEN_BACK, OUTCOME
from tests.helpers.studies import SPACE, add, empty


def test_every_trial_that_ran_is_a_row_with_its_own_word_for_how_it_ended():
    study = empty()
    add(study, "complete", [0.9])
    add(study, "pruned", reported={1: 0.3})
    add(study, "failed", reason="first\n  second")
    add(study, "failed")
    add(study, "running", retry_of=[3])
    add(study, "failed", **{GIVEN_BACK: True})
    table = rows(study)
    assert [row.state for row in table] == ["complete", "pruned", "failed", "retried", "running"]
    assert [row.values for row in table] == [(0.9,), (), (), (), ()]
    assert table[2].reason == "first second"
    assert table[0].run_id == "0" * 32


def test_of_a_trial_that_left_no_word_epochs_come_from_its_reports_and_nobody_knows_the_time():
    study = empty()
    add(study, "failed", reported={1: 0.1, 2: 0.2}, **{OUTCOME: ""})
    add(study, "pruned", seconds=12, reported={1: 0.1}, **{OUTCOME: ""})
    dead, pruned = rows(study)
    assert (dead.epochs, math.isnan(dead.seconds)) == (2, True)
    assert (pruned.epochs, pruned.seconds) == (1, 12)


def test_the_table_keeps_parameters_apart_from_an_objective_of_the_same_name(tmp_path):
    study = empty(("minimize",))
    space = {"loss": SPACE["model"], "optimizer.lr": SPACE["optimizer.lr"]}
    add(
        study, "complete", [0.25], params={"loss": "cnn", "optimizer.lr": 0.001}, space=space, epochs=3, seconds=1.23456
    )
    add(study, "failed", params={"optimizer.lr": 0.002}, space=space, reason='said "no", twice', **{OUTCOME: ""})
    write_csv(study, ["loss"], tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(newline="") as file:
        header, first, second = csv.reader(file)
    assert header == [
        *("number", "state", "loss", "params.loss", "params.optimizer.lr"),
        *("epochs", "seconds", "run_id", "reason"),
    ]
    assert first == ["0", "complete", "0.25", "cnn", "0.001", "3", "1.235", "0" * 32, ""]
    assert second == ["1", "failed", "", "", "0.002", "0", "", f"{1:032x}", 'said "no", twice']
