from __future__ import annotations

import math

import numpy as np
import pytest

from flatfix.errors import UserError
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.calibration import expected_calibration_error
from flatfix.evaluation.intervals import bootstrap, proportion_interval
from flatfix.evaluation.measures import measure
from flatfix.evaluation.metrics import compute
from tests.helpers.answers import answers, answers_of, decision, said


@pytest.mark.parametrize("num_classes", [2, 3])
def test_every_number_is_that_of_the_classes_as_decided(num_classes: int) -> None:
    test, validation = answers(num_classes), answers(num_classes, seed=1)
    positive = test.decision.positive
    measures = measure(test, validation)
    assert measures.test == compute(test.labels, test.calibrated, positive, test.predictions)
    assert measures.validation == compute(validation.labels, validation.calibrated, positive, validation.predictions)
    assert measures.intervals == bootstrap(test.labels, test.calibrated, positive, test.predictions)
    assert measures.calibration_error == (
        expected_calibration_error(test.labels, test.probabilities, positive),
        expected_calibration_error(test.labels, test.calibrated, positive),
    )


def test_pictures_that_judge_are_measured_without_those_that_chose() -> None:
    test = answers(2)
    alone, beside = measure(test), measure(test, answers(2, seed=1))
    assert alone.validation == {}
    assert (alone.test, alone.intervals, alone.calibration_error) == (
        beside.test,
        beside.intervals,
        beside.calibration_error,
    )


def test_a_share_without_an_exception_still_has_an_interval() -> None:
    test = answers_of([0] * 30 + [1] * 20, [0.1] * 30 + [0.9] * 20)
    intervals = measure(test, test).intervals
    assert intervals["accuracy"] == proportion_interval(50, 50)
    assert intervals["recall"] == intervals["precision"] == proportion_interval(20, 20)
    assert all(map(math.isnan, (*intervals["f1"], *intervals["auroc"])))  # of these nobody can tell


def test_what_is_undefined_is_nan() -> None:
    measures = measure(answers_of([0, 0], [0.1, 0.6]), answers(2))
    assert math.isnan(measures.test["auroc"])
    assert all(math.isnan(end) for end in measures.intervals["auroc"])


def test_two_classes_need_a_positive_one() -> None:
    test = Answers.of(said(2), decision(3))
    with pytest.raises(UserError, match=r"dataset\.positive_class"):
        measure(test, test)


def test_an_empty_split_is_refused() -> None:
    empty = Answers.of(said(3, num_pictures=0), decision(3))
    assert len(empty.labels) == 0
    with pytest.raises(UserError, match="nothing to evaluate"):
        measure(empty, answers(3))
    np.testing.assert_array_equal(empty.worst_mistakes(24), [])
