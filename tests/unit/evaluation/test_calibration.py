from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from flatfix.evaluation.calibration import expected_calibration_error, fit_temperature, reliability
from flatfix.evaluation.intervals import proportion_interval
from flatfix.evaluation.metrics import compute
from flatfix.inference.decision import Decision


def say(
    num: int, num_classes: int, temperature: float, seed: int, spread: float = 4.0
) -> tuple[NDArray[np.int64], ...]:
    """Labels, and probabilities that would be right had their logits been divided by the temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=spread, size=(num, num_classes))
    labels = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((num, 1))).argmax(axis=1)
    return labels, softmax(logits * temperature, axis=1).astype(np.float32)


def loss_at(temperature: float, labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> float:
    calibrated = Decision(temperature=temperature).calibrate(probabilities)
    return compute(labels, calibrated, 1 if probabilities.shape[1] == 2 else None)["loss"]


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_is_found_again_and_makes_the_error_that_of_chance(num_classes: int, temperature: float) -> None:
    labels, probabilities = say(20_000, num_classes, temperature, seed=0)
    found = fit_temperature(labels, probabilities)
    assert found == pytest.approx(temperature, rel=0.05)
    positive = 1 if num_classes == 2 else None
    others, said = say(20_000, num_classes, temperature, seed=1)
    after = expected_calibration_error(others, Decision(temperature=found).calibrate(said), positive)
    assert after < 0.015
    if temperature != 1:
        assert expected_calibration_error(others, said, positive) > 3 * after


@pytest.mark.parametrize("num", [1, 2, 5, 30, 300])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_loss_is_never_above_that_of_temperature_1(num: int, num_classes: int) -> None:
    for seed in range(30):
        labels, probabilities = say(num, num_classes, np.random.default_rng(seed).choice([0.1, 1.0, 9.0]), seed)
        found = fit_temperature(labels, probabilities)
        assert 0.25 <= found <= 10.01
        assert loss_at(found, labels, probabilities) <= loss_at(1.0, labels, probabilities) + 1e-9


def test_no_other_temperature_within_the_bounds_has_a_lower_loss() -> None:
    labels, probabilities = say(200, 3, 2.0, seed=0)
    least = min(loss_at(temperature, labels, probabilities) for temperature in np.geomspace(0.25, 10, 200))
    assert loss_at(fit_temperature(labels, probabilities), labels, probabilities) <= least + 1e-9


def test_split_without_a_mistake_is_no_reason_for_certainty() -> None:
    labels, probabilities = say(50, 2, 1.0, seed=0, spread=30)
    right = probabilities.argmax(axis=1)
    assert fit_temperature(right, probabilities) == 1.0
    assert loss_at(0.25, right, probabilities) < loss_at(1.0, right, probabilities)
    others = say(5000, 2, 1.0, seed=1, spread=30)
    assert loss_at(0.25, *others) > 1.5 * loss_at(1.0, *others)


@pytest.mark.parametrize("label", [0, 1])
def test_a_single_class_has_a_temperature(label: int) -> None:
    _, probabilities = say(100, 2, 1.0, seed=0)
    found = fit_temperature(np.full(100, label), probabilities)
    assert found == pytest.approx(10, rel=1e-3)  # half of the pictures are taken for the other class


def test_model_that_says_nothing_keeps_its_temperature() -> None:
    assert fit_temperature(np.array([0, 1, 1]), np.full((3, 2), 0.5)) == 1.0


def test_a_mistake_of_probability_0_is_finite() -> None:
    labels, probabilities = say(100, 3, 1.0, seed=0)
    probabilities[:2] = [[1, 0, 0], [0, 1, 0]]
    labels[:2] = [1, 1]
    found = fit_temperature(labels, probabilities)
    assert 1 < found < 10
    assert loss_at(found, labels, probabilities) < loss_at(1.0, labels, probabilities)


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_error_agrees_with_torchmetrics(num_classes: int, num_bins: int) -> None:
    labels, probabilities = say(777, num_classes, 2.0, seed=0)
    target, preds = torch.from_numpy(labels), torch.from_numpy(probabilities)
    if num_classes == 2:
        expected = binary_calibration_error(preds[:, 1].contiguous(), target, num_bins)
        found = expected_calibration_error(labels, probabilities, 1, num_bins)
    else:
        expected = multiclass_calibration_error(preds, target, num_classes, num_bins)
        found = expected_calibration_error(labels, probabilities, None, num_bins)
    assert found == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(("num_classes", "positive"), [(2, 0), (2, 1), (10, None)])
def test_error_is_the_mean_gap_of_the_bins(num_classes: int, positive: int | None) -> None:
    labels, probabilities = say(500, num_classes, 2.0, seed=0)
    bins = reliability(labels, probabilities, positive)
    used = bins.counts > 0
    gaps = np.abs(bins.frequency - bins.confidence)[used]
    expected = np.average(gaps, weights=bins.counts[used])
    assert expected_calibration_error(labels, probabilities, positive) == pytest.approx(expected)


def test_bins_hold_their_upper_edge_and_empty_ones_are_nan() -> None:
    scores = np.array([0.0, 0.25, 0.2500001, 0.5, 1.0, 1.0])
    labels = np.array([0, 0, 1, 1, 1, 0])
    bins = reliability(labels, np.column_stack([1 - scores, scores]), positive=1, num_bins=4)
    assert bins.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert bins.counts.tolist() == [2, 2, 0, 2]
    np.testing.assert_allclose(bins.confidence, [0.125, 0.375, math.nan, 1.0], atol=1e-6)
    np.testing.assert_allclose(bins.frequency, [0, 1, math.nan, 0.5])
    np.testing.assert_allclose(bins.low[[0, 1, 3]], [proportion_interval(true, 2)[0] for true in (0, 2, 1)])
    np.testing.assert_allclose(bins.high[[0, 1, 3]], [proportion_interval(true, 2)[1] for true in (0, 2, 1)])
    assert np.isnan([bins.low[2], bins.high[2]]).all()


def test_two_classes_are_binned_by_the_positive_class_and_more_by_the_most_probable() -> None:
    labels = np.array([0, 1])
    two = reliability(labels, np.array([[0.9, 0.1], [0.6, 0.4]]), positive=1, num_bins=10)
    assert np.flatnonzero(two.counts).tolist() == [0, 3]
    three = reliability(labels, np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]]), positive=None, num_bins=10)
    assert np.flatnonzero(three.counts).tolist() == [5, 8]
    assert three.frequency[[5, 8]].tolist() == [0.0, 1.0]


def test_overshoot_of_half_precision_falls_into_the_last_bin() -> None:
    bins = reliability(np.array([1]), np.array([[0, 1.001]], np.float16), positive=1)
    assert bins.counts.tolist() == [0] * 14 + [1]
