from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from flatfix.inference.decision import Decision


def of_positive(scores: list[float]) -> NDArray[np.float64]:
    return np.column_stack([1 - np.array(scores), scores])


@pytest.mark.parametrize("temperature", [0.25, 0.9, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_calibrated_probabilities_are_the_softmax_of_the_logits_over_the_temperature(
    temperature: float, num_classes: int
) -> None:
    logits = np.random.default_rng(0).normal(scale=4, size=(200, num_classes))
    calibrated = Decision(temperature=temperature).calibrate(softmax(logits, axis=1))
    np.testing.assert_allclose(calibrated, softmax(logits / temperature, axis=1), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_decision_of_a_bare_model_leaves_its_probabilities_and_its_answer(dtype: type[np.floating[Any]]) -> None:
    probabilities = np.array([[1, 0, 0], [0.3, 0.3, 0.4], [0.4, 0.4, 0.2]], dtype=dtype)
    decision = Decision()
    calibrated = decision.calibrate(probabilities)
    np.testing.assert_array_equal(calibrated, probabilities)
    assert calibrated.dtype == np.float64
    assert decision.predict(calibrated).tolist() == [0, 2, 0]
    assert not decision.needs_review(calibrated).any()


@pytest.mark.parametrize("temperature", [1e-4, 0.25, 0.99, 10.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probabilities_of_0_and_1_stay_probabilities(temperature: float, dtype: type[np.floating[Any]]) -> None:
    probabilities = np.array([[0, 1, 0], [1, 0, 0], [0, 0.5, 0.5]], dtype=dtype)
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        calibrated = Decision(temperature=temperature).calibrate(probabilities)
    np.testing.assert_allclose(calibrated.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(calibrated.argmax(axis=1), [1, 0, 1])
    assert calibrated[2, 1] == calibrated[2, 2]


@pytest.mark.parametrize("temperature", [0.25, 2.5])
def test_temperature_keeps_the_order_of_scores_and_the_most_probable_class(temperature: float) -> None:
    scores = np.sort(np.random.default_rng(0).random(1000))
    calibrated = Decision(temperature=temperature).calibrate(of_positive(scores.tolist()))
    assert (np.diff(calibrated[:, 1]) >= 0).all()
    np.testing.assert_array_equal(calibrated.argmax(axis=1), scores > 0.5)


@pytest.mark.parametrize("positive", [0, 1])
def test_score_at_the_threshold_is_decided_as_positive(positive: int) -> None:
    scores = [0.0, np.nextafter(0.3, 0), 0.3, np.nextafter(0.3, 1), 1.0]
    calibrated = of_positive(scores) if positive == 1 else of_positive(scores)[:, ::-1]
    decided = Decision(positive=positive, threshold=0.3).predict(calibrated)
    assert (decided == positive).tolist() == [False, False, True, True, True]
    assert set(decided.tolist()) == {0, 1}


def test_the_ends_of_the_review_band_are_in_it() -> None:
    calibrated = of_positive([0.19, 0.2, 0.5, 0.7, 0.71])
    decision = Decision(positive=1, review=(0.2, 0.7))
    assert decision.needs_review(calibrated).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("decision", [Decision(), Decision(1.5, 0, 0.3, (0.2, 0.4), "recall")])
def test_no_pictures_need_no_decision(decision: Decision) -> None:
    calibrated = decision.calibrate(np.zeros((0, 2), np.float32))
    assert (calibrated.shape, len(decision.predict(calibrated)), len(decision.needs_review(calibrated))) == (
        (0, 2),
        0,
        0,
    )


@pytest.mark.parametrize("decision", [Decision(), Decision(1.5, 0, 0.3, (0.0, 0.4), "recall")])
def test_decision_is_the_same_after_json(decision: Decision) -> None:
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision
