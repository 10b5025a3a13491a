from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from flatfix.errors import UserError
from flatfix.evaluation import intervals
from flatfix.evaluation.intervals import ClassRow, bootstrap, per_class, proportion_interval
from flatfix.evaluation.metrics import METRICS, compute

SITUATIONS = ["ordinary", "ties", "rare_classes", "absent_classes", "one_class", "one_picture", "half_precision"]


def situation(name: str, num_classes: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Labels and probabilities of a mediocre classifier."""
    rng = np.random.default_rng(7)
    num = {"one_picture": 1, "rare_classes": 12}.get(name, 150)
    num_present = {"absent_classes": num_classes // 2, "one_class": 1}.get(name, num_classes)
    labels = rng.integers(num_present, size=num)
    logits = rng.normal(size=(num, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    if name == "ties":
        logits = logits.round()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities.astype(np.float16 if name == "half_precision" else np.float32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize(("num_classes", "positive"), [(2, 0), (2, 1), (3, None), (10, None)])
@pytest.mark.parametrize("has_threshold", [False, True])
def test_resamples_are_measured_as_the_metrics_are_defined(
    monkeypatch: pytest.MonkeyPatch, name: str, num_classes: int, positive: int | None, has_threshold: bool
) -> None:
    labels, probabilities = situation(name, num_classes)
    monkeypatch.setattr(intervals, "_MAX_WEIGHTS", 7 * len(labels))  # 7, 7 and 6 resamples at a time
    predictions = probabilities[:, ::-1].argmax(axis=1) if has_threshold else None
    rng = np.random.default_rng(3)
    measured = []
    for _ in range(20):
        drawn = rng.integers(len(labels), size=len(labels))
        decided = None if predictions is None else predictions[drawn]
        measured.append(compute(labels[drawn], probabilities[drawn], positive, decided))
    for level in (0.0, 0.5, 0.95, 1.0):
        found = bootstrap(labels, probabilities, positive, predictions, num_resamples=20, seed=3, level=level)
        assert list(found) == list(METRICS)
        for metric, interval in found.items():
            values = [each[metric] for each in measured if not math.isnan(each[metric])]
            expected = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if values else [math.nan, math.nan]
            assert interval == pytest.approx(tuple(expected), rel=1e-9, nan_ok=True)
            assert [type(end) for end in interval] == [float, float]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    def draw(num: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        rng = np.random.default_rng(seed)
        labels = (rng.random(num) < 0.3).astype(np.int64)
        scores = 1 / (1 + np.exp(-rng.normal(2 * labels - 1, 1.0)))
        return labels, np.column_stack([1 - scores, scores]), (scores > 0.4).astype(np.int64)

    labels, probabilities, predictions = draw(1_000_000, seed=0)
    truth = compute(labels, probabilities, 1, predictions)
    num_covering = dict.fromkeys(METRICS, 0)
    for seed in range(1, 301):
        labels, probabilities, predictions = draw(250, seed)
        found = bootstrap(labels, probabilities, 1, predictions, num_resamples=200, seed=seed)
        for metric, (low, high) in found.items():
            num_covering[metric] += low <= truth[metric] <= high
    coverage = {metric: num / 300 for metric, num in num_covering.items()}
    assert all(0.90 <= each <= 0.98 for each in coverage.values()), coverage


def test_more_pictures_make_narrower_intervals() -> None:
    labels, probabilities = situation("ordinary", 3)
    few = bootstrap(labels, probabilities, None)
    many = bootstrap(np.tile(labels, 16), np.tile(probabilities, (16, 1)), None)
    for metric in METRICS:
        assert few[metric][1] - few[metric][0] == pytest.approx(4 * (many[metric][1] - many[metric][0]), rel=0.25)


def test_intervals_follow_from_the_seed() -> None:
    labels, probabilities = situation("ordinary", 3)
    first, again, other = (bootstrap(labels, probabilities, None, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_metric_that_is_defined_on_some_resamples_only_is_measured_on_those() -> None:
    labels, probabilities = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    low, high = bootstrap(labels, probabilities, 1)["auroc"]
    assert (low, high) == (1.0, 1.0)
    assert np.isnan(bootstrap(labels[:3], probabilities[:3], 1)["auroc"]).all()


def test_diverged_model_has_no_intervals() -> None:
    found = bootstrap(np.array([0, 1]), np.array([[0.5, 0.5], [math.nan, 0.5]]), 1)
    assert list(found) == list(METRICS)
    assert np.isnan(list(found.values())).all()


def test_no_pictures_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"dataset\.split\.val_fraction"):
        bootstrap(np.zeros(0, np.int64), np.zeros((0, 3)), None)


@pytest.mark.parametrize(("successes", "num"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 50), (97, 100), (1, 2)])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_proportion_interval_is_that_of_wilson(successes: int, num: int, level: float) -> None:
    expected = binomtest(successes, num).proportion_ci(level, method="wilson")
    assert proportion_interval(successes, num, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_proportion_of_no_pictures_can_be_anything() -> None:
    assert proportion_interval(0, 0) == pytest.approx((0, 1))


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("num_classes", [3, 10])
def test_mean_of_the_rows_of_classes_is_the_metric(name: str, num_classes: int) -> None:
    labels, probabilities = situation(name, num_classes)
    rows = per_class(labels, probabilities.argmax(axis=1), [f"class {index}" for index in range(num_classes)])
    metrics = compute(labels, probabilities, None)
    for metric in ("precision", "recall", "f1"):
        assert np.nanmean([getattr(row, metric) for row in rows]) == pytest.approx(metrics[metric])
    assert [row.num for row in rows] == np.bincount(labels, minlength=num_classes).tolist()


def test_rows_of_classes_tell_what_is_0_from_what_is_undefined() -> None:
    rows = per_class(np.array([0, 0, 1]), np.array([0, 2, 0]), ["a", "b", "c", "d"])
    assert rows[0] == ClassRow("a", 2, 0.5, 0.5, 0.5)
    assert rows[1] == ClassRow("b", 1, 0.0, 0.0, 0.0)
    assert rows[2] == ClassRow("c", 0, 0.0, 0.0, 0.0)
    assert (rows[3].num, np.isnan([rows[3].precision, rows[3].recall, rows[3].f1]).all()) == (0, True)
