from __future__ import annotations

import math

import pytest

from flatfix.errors import UserError
from flatfix.evaluation.qualification import Bound, Qualification, parse_bounds, qualify

METRICS = {"loss": 0.61, "accuracy": 0.7812, "precision": 0.8, "recall": 0.7, "f1": 0.74, "auroc": math.nan}


def test_bounds_are_read_and_none_sets_no_bound() -> None:
    options = {"min_accuracy": 0.8, "max_loss": 1, "min_recall": None}
    assert parse_bounds(options) == (Bound("min_accuracy", 0.8), Bound("max_loss", 1.0))


def test_any_metric_takes_either_bound() -> None:
    bounds = parse_bounds({"max_accuracy": 0.99, "min_loss": 0.0})
    assert [bound.metric for bound in bounds] == ["accuracy", "loss"]


@pytest.mark.parametrize("key", ["min_acuracy", "min_acc_uracy", "minaccuracy", "min_accuracyy"])
def test_unknown_bound_names_the_option_the_choices_and_the_nearest(key: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_bounds({key: None})
    assert str(caught.value).startswith(f"callbacks.qualify.{key}: ")
    assert "max_loss" in str(caught.value)
    assert "Did you mean 'min_accuracy'?" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "limit"),
    [
        ("min_accuracy", 80),
        ("min_accuracy", -0.1),
        ("max_loss", -1.0),
        ("max_loss", math.inf),
        ("min_f1", math.nan),
        ("min_f1", True),
        ("min_f1", "0.8"),
    ],
)
def test_limit_that_the_metric_cannot_take_is_refused(key: str, limit: float) -> None:
    with pytest.raises(UserError, match=rf"callbacks\.qualify\.{key}={limit}: must be"):
        parse_bounds({key: limit})


def test_bounds_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UserError, match=r"callbacks\.qualify\.min_loss=2: greater than max_loss=1"):
        parse_bounds({"min_loss": 2.0, "max_loss": 1.0})


def test_model_that_reaches_every_bound_qualifies() -> None:
    verdict = qualify(METRICS, parse_bounds({"min_accuracy": 0.7812, "max_loss": 0.7}))
    assert verdict == Qualification(True, "accuracy 0.7812 reaches min_accuracy 0.7812; loss 0.61 reaches max_loss 0.7")


def test_reason_names_each_missed_bound_and_by_how_much() -> None:
    verdict = qualify(METRICS, parse_bounds({"min_accuracy": 0.82, "max_loss": 0.5, "min_precision": 0.8}))
    assert verdict == Qualification(
        False, "accuracy 0.7812 misses min_accuracy 0.82 by 0.039; loss 0.61 misses max_loss 0.5 by 0.11"
    )


@pytest.mark.parametrize("options", [{}, {"min_accuracy": None}])
def test_no_bound_does_not_qualify(options: dict[str, float | None]) -> None:
    assert qualify(METRICS, parse_bounds(options)) == Qualification(False, "no bound configured")


@pytest.mark.parametrize("metrics", [METRICS, {}])
@pytest.mark.parametrize("key", ["min_auroc", "max_auroc"])
def test_undefined_or_absent_metric_misses_its_bound(metrics: dict[str, float], key: str) -> None:
    assert qualify(metrics, (Bound(key, 0.9),)) == Qualification(False, f"auroc is undefined and misses {key} 0.9")
