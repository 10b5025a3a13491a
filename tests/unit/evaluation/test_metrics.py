from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from flatfix.errors import UserError
from flatfix.evaluation.metrics import METRICS, PROBABILITY_FLOOR, compute, is_better

SITUATIONS = ["ordinary", "ties", "few_of_many", "absent_classes", "gaps", "one_class", "one_sample", "half_precision"]


def situation(name: str, num_classes: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Labels and probabilities of a mediocre classifier."""
    rng = np.random.default_rng(7)
    num = {"one_sample": 1, "few_of_many": num_classes}.get(name, 500)
    present = {
        "absent_classes": range(max(1, num_classes // 2)),
        "gaps": range(0, num_classes, 3),
        "one_class": [num_classes - 1],
    }.get(name, range(num_classes))
    labels = rng.choice(np.asarray(present), size=num)
    logits = rng.normal(size=(num, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    if name == "ties":
        logits = logits.round()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities.astype(np.float16 if name == "half_precision" else np.float32)


def oracle(labels: NDArray[np.int64], probabilities: NDArray[Any], positive: int | None) -> dict[str, float]:
    """The same metrics by torch and torchmetrics."""
    num_classes = probabilities.shape[1]
    target, preds = torch.from_numpy(labels), torch.from_numpy(probabilities).double()
    counts = np.bincount(labels, minlength=num_classes)
    # torchmetrics counts an undefined AUROC as 0.
    is_defined = (counts > 0) & (counts < len(labels))
    areas = np.where(is_defined, multiclass_auroc(preds, target, num_classes, average=None).numpy(), np.nan)
    average, picked = ("macro", ...) if positive is None else (None, positive)
    areas = areas[picked]
    return {
        "loss": float(torch.nn.functional.nll_loss(preds.log(), target)),
        "accuracy": float(multiclass_accuracy(preds, target, num_classes, average="micro")),
        "precision": float(multiclass_precision(preds, target, num_classes, average=average)[picked]),
        "recall": float(multiclass_recall(preds, target, num_classes, average=average)[picked]),
        "f1": float(multiclass_f1_score(preds, target, num_classes, average=average)[picked]),
        "auroc": float(np.nanmean(areas)) if np.isfinite(areas).any() else math.nan,
    }


@pytest.mark.filterwarnings("ignore:No (positive|negative) samples:UserWarning")
@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize(("num_classes", "positive"), [(2, 0), (2, 1), (3, None), (10, None)])
def test_metrics_agree_with_torchmetrics(name: str, num_classes: int, positive: int | None) -> None:
    labels, probabilities = situation(name, num_classes)
    metrics = compute(labels, probabilities, positive)
    assert metrics == pytest.approx(oracle(labels, probabilities, positive), abs=1e-6, nan_ok=True)
    assert list(metrics) == list(METRICS)
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize(("num_classes", "positive"), [(2, 1), (10, None)])
def test_order_of_rows_does_not_matter(name: str, num_classes: int, positive: int | None) -> None:
    labels, probabilities = situation(name, num_classes)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = compute(labels[order], probabilities[order], positive)
    assert shuffled == pytest.approx(compute(labels, probabilities, positive), rel=1e-12, nan_ok=True)


def test_perfect_classifier_has_the_best_value_of_every_metric() -> None:
    metrics = compute(np.arange(3), np.eye(3), None)
    assert metrics == {"loss": 0.0, "accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0, "auroc": 1.0}


def test_constant_classifier_has_auroc_of_one_half() -> None:
    assert compute(np.array([0, 1, 1]), np.full((3, 2), 0.5), 1)["auroc"] == 0.5


def test_equal_probabilities_predict_the_first_class() -> None:
    assert compute(np.array([0, 0, 1]), np.full((3, 2), 0.5), 0)["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probability_zero_costs_the_documented_most(dtype: type[np.floating[Any]]) -> None:
    probabilities = np.array([[0, 1], [0, 1]], dtype=dtype)
    loss = compute(np.array([0, 1]), probabilities, 1)["loss"]
    assert loss == pytest.approx(-math.log(PROBABILITY_FLOOR) / 2)
    assert loss == pytest.approx(87.34 / 2, abs=0.01)


def test_positive_class_without_a_label_or_prediction_has_ratios_of_zero_and_no_auroc() -> None:
    metrics = compute(np.zeros(4, np.int64), np.tile([0.9, 0.1], (4, 1)), 1)
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0.0, 0.0, 0.0)
    assert math.isnan(metrics["auroc"])


def test_diverged_model_has_no_metrics() -> None:
    metrics = compute(np.array([0, 1]), np.array([[0.5, 0.5], [math.nan, 0.5]]), 1)
    assert list(metrics) == list(METRICS)
    assert all(math.isnan(metric) for metric in metrics.values())


def test_no_pictures_is_a_user_error_that_names_the_options() -> None:
    with pytest.raises(UserError, match=r"dataset\.split\.val_fraction"):
        compute(np.zeros(0, np.int64), np.zeros((0, 10)), None)


@pytest.mark.parametrize("positive", [None, 2, -1])
def test_two_classes_need_a_positive_class(positive: int | None) -> None:
    with pytest.raises(UserError, match=r"dataset\.positive_class: required"):
        compute(np.array([0, 1]), np.eye(2), positive)


def test_positive_class_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(UserError, match=r"dataset\.positive_class: has no meaning with 3 classes"):
        compute(np.arange(3), np.eye(3), 1)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (np.array([0, 1]), np.eye(3), "need labels"),
        (np.array([[0], [1], [2]]), np.eye(3), "need labels"),
        (np.array([0, 1, 3]), np.eye(3), r"0\.\.2, got int64 0\.\.3"),
        (np.array([-1, 1, 2]), np.eye(3), "need integer labels"),
        (np.array([0.0, 1.0, 2.0]), np.eye(3), "need integer labels"),
        (np.array([0, 0, 0]), np.ones((3, 1)), "at least 2 classes"),
        (np.arange(3), 4 * np.eye(3), "are these logits"),
        (np.arange(3), np.eye(3) - 0.5, "are these logits"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(labels: NDArray[Any], probabilities: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute(labels, probabilities, None)


@pytest.mark.parametrize(
    ("metric", "value", "than", "delta", "expected"),
    [
        ("loss", 0.4, 0.5, 0.0, True),
        ("loss", 0.5, 0.4, 0.0, False),
        ("accuracy", 0.5, 0.4, 0.0, True),
        ("accuracy", 0.4, 0.5, 0.0, False),
        ("accuracy", 0.5, 0.5, 0.0, False),
        ("accuracy", 0.75, 0.5, 0.25, False),
        ("accuracy", 0.76, 0.5, 0.25, True),
        ("loss", 0.45, 0.5, 0.1, False),
        ("accuracy", 0.0, -math.inf, 0.0, True),
        ("loss", 5.0, math.inf, 0.0, True),
        ("loss", math.nan, 0.5, 0.0, False),
        ("loss", 0.5, math.nan, 0.0, True),
        ("loss", math.nan, math.nan, 0.0, False),
    ],
)
def test_better_follows_the_direction_of_the_metric(
    metric: str, value: float, than: float, delta: float, expected: bool
) -> None:
    assert is_better(metric, value, than, delta) is expected


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        is_better("acuracy", 1.0, 0.0)


def test_names_of_metrics_are_known_without_loading_scikit_learn() -> None:
    code = "import sys, flatfix.evaluation.qualification; sys.exit('sklearn' in sys.modules or 'scipy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
