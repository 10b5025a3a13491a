"""Every number of one evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flatfix.evaluation.answers import Answers
from flatfix.evaluation.calibration import expected_calibration_error
from flatfix.evaluation.intervals import bootstrap, proportion_interval
from flatfix.evaluation.metrics import compute

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Measures:
    """What answers are worth; metrics by the keys of `METRICS`, of the classes as decided.

    Attributes:
        test: metrics of the pictures that judge.
        intervals: 95 % interval of each of them; nan where no resample differs and there is no other way to tell.
        validation: metrics of the validation split, which chose the decision; empty where it is not at hand.
        calibration_error: expected calibration error on test before and after calibration.
    """

    test: dict[str, float]
    intervals: dict[str, Interval]
    validation: dict[str, float]
    calibration_error: tuple[float, float]


def measure(test: Answers, validation: Answers | None = None) -> Measures:
    """Measure the answers to the pictures that judge, and to those that chose.

    Raises:
        UserError: if a split has no pictures, or the positive class does not fit the number of classes.
        ValueError: if the arrays do not fit together.
    """
    positive = test.decision.positive
    return Measures(
        test=_metrics(test),
        validation=_metrics(validation) if validation else {},
        intervals=_intervals(test),
        calibration_error=(
            expected_calibration_error(test.labels, test.probabilities, positive),
            expected_calibration_error(test.labels, test.calibrated, positive),
        ),
    )


def _metrics(answers: Answers) -> dict[str, float]:
    return compute(answers.labels, answers.calibrated, answers.decision.positive, answers.predictions)


def _intervals(test: Answers) -> dict[str, Interval]:
    """Return the bootstrap's intervals; where they have no width, Wilson's of a share, and none of another metric."""
    positive, is_right = test.decision.positive, test.is_right
    intervals = bootstrap(test.labels, test.calibrated, positive, test.predictions)
    trials = {"accuracy": is_right}
    if positive is not None:
        trials["recall"] = is_right[test.labels == positive]
        trials["precision"] = is_right[test.predictions == positive]
    for metric, (low, high) in intervals.items():
        if low == high:
            outcomes = trials.get(metric)
            intervals[metric] = (
                (math.nan, math.nan)
                if outcomes is None
                else proportion_interval(int(np.count_nonzero(outcomes)), len(outcomes))
            )
    return intervals
