from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from flatfix.evaluation import calibration
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.figures import reliability
from flatfix.evaluation.wording import percent
from tests.helpers.answers import answers, decision, said


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("num_classes", [2, 3, 100])
def test_both_curves_have_a_point_for_each_bin_with_pictures(num_classes: int) -> None:
    test = answers(num_classes)
    _, before, after = reliability(test).axes[0].lines[:3]
    for line, probabilities in ((before, test.probabilities), (after, test.calibrated)):
        bins = calibration.reliability(test.labels, probabilities, test.decision.positive)
        is_used = bins.counts > 0
        np.testing.assert_allclose(line.get_xdata(), bins.confidence[is_used])
        np.testing.assert_allclose(line.get_ydata(), bins.frequency[is_used])


def test_the_legend_holds_the_error_before_and_after() -> None:
    test = answers(3)
    before, after = (
        calibration.expected_calibration_error(test.labels, each, None)
        for each in (test.probabilities, test.calibrated)
    )
    assert legend(reliability(test))[1:] == [f"before: error {percent(before)}", f"after: error {percent(after)}"]
    assert after < before
    title = f"Temperature 2.500 lowers the calibration error from {percent(before)} to {percent(after)}"
    assert reliability(test).get_suptitle().replace("\n", " ") == title


def test_a_temperature_that_does_harm_is_said_to() -> None:
    test = Answers.of(said(3), decision(3, temperature=0.5))
    assert "raises the calibration error" in reliability(test).get_suptitle().replace("\n", " ")


def test_a_temperature_without_effect_is_said_to_have_none() -> None:
    test = Answers.of(said(3), decision(3, temperature=1.00001))
    assert "leaves the calibration error at" in reliability(test).get_suptitle().replace("\n", " ")


def test_without_calibration_there_is_one_curve() -> None:
    test = Answers.of(said(3), dataclasses.replace(decision(3), temperature=1.0))
    figure = reliability(test)
    assert len(legend(figure)) == 2
    assert figure.get_suptitle().startswith("The calibration error is ")


def test_the_counts_below_are_those_of_all_pictures() -> None:
    assert sum(bar.get_height() for bar in reliability(answers(2)).axes[1].patches) == 400


def test_the_axes_say_what_is_claimed() -> None:
    of_two, of_many = reliability(answers(2)), reliability(answers(3))
    assert of_two.axes[0].get_ylabel() == "how often it is class 1"
    assert of_two.axes[1].get_xlabel() == "probability of class 1"
    assert of_many.axes[0].get_ylabel() == "how often it is right"
    assert of_many.axes[1].get_xlabel() == "probability of the predicted class"
