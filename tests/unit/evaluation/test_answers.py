from __future__ import annotations

import numpy as np
import pytest

from flatfix.evaluation.answers import Answers
from flatfix.evaluation.predictions import Predictions
from flatfix.inference.decision import Decision
from tests.helpers.answers import answers_of, decision, said


def test_answers_are_what_the_decision_makes_of_what_was_said() -> None:
    table, how = said(2), decision(2)
    test = Answers.of(table, how)
    calibrated = how.calibrate(table.probabilities)
    np.testing.assert_array_equal(test.probabilities, table.probabilities)
    np.testing.assert_array_equal(test.calibrated, calibrated)
    np.testing.assert_array_equal(test.predictions, calibrated[:, 1] >= 0.3)
    np.testing.assert_array_equal(test.needs_review, (calibrated[:, 1] >= 0.2) & (calibrated[:, 1] <= 0.5))
    np.testing.assert_array_equal(test.is_right, test.predictions == table.labels)


def test_the_score_of_two_classes_is_the_probability_of_the_positive_one() -> None:
    test = answers_of([1, 0], [0.4, 0.1])
    assert (test.scores.tolist(), test.scored) == (pytest.approx([0.4, 0.1]), "defective")


def test_the_score_of_many_classes_is_the_probability_of_the_predicted_one() -> None:
    test = Answers.of(said(3), decision(3))
    np.testing.assert_array_equal(test.scores, test.calibrated.max(axis=1))
    assert test.scored == "the predicted class"


def test_the_worst_mistakes_are_those_whose_truth_got_the_smallest_probability() -> None:
    test = answers_of([0, 1, 0, 0, 1], [0.9, 0.05, 0.99, 0.1, 0.8])
    assert test.worst_mistakes(2).tolist() == [2, 1]
    assert test.worst_mistakes(24).tolist() == [2, 1, 0]


def test_a_model_without_mistakes_has_no_worst_ones() -> None:
    assert answers_of([0, 1], [0.1, 0.9]).worst_mistakes(24).tolist() == []


def test_the_least_certain_of_two_classes_are_nearest_to_the_threshold_in_logits() -> None:
    # Odds 0.02:0.98 are 20 times those of 0.001:0.999, and 12 times fewer than those of 0.2:0.8.
    test = answers_of([0, 0, 0, 0], [0.001, 0.2, 0.021, 0.9], threshold=0.02)
    assert test.least_certain(3).tolist() == [2, 1, 0]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.0000000000000002])
def test_a_threshold_at_the_end_of_the_scale_still_orders_the_pictures(threshold: float) -> None:
    test = answers_of([0, 0, 0], [0.0, 0.5, 1.0], threshold=threshold)
    assert test.least_certain(3).tolist() == ([0, 1, 2] if threshold == 0 else [2, 1, 0])


def test_the_least_certain_of_many_classes_are_those_with_two_nearly_equal_classes() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.35, 0.05, 0.6], [0.45, 0.15, 0.4]])
    table = Predictions(["a", "b", "c"], np.array([0, 0, 0]), probabilities, ("x", "y", "z"))
    assert Answers.of(table, Decision()).least_certain(24).tolist() == [2, 1, 0]
