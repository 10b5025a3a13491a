"""The metrics of a classifier: one definition for training, evaluation and the registry."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from flatfix.errors import UserError, one_of
from flatfix.inference.decision import PROBABILITY_FLOOR

METRICS: Final[dict[str, Literal["min", "max"]]] = {
    "loss": "min",
    "accuracy": "max",
    "precision": "max",
    "recall": "max",
    "f1": "max",
    "auroc": "max",
}
"""Every metric and the direction in which it gets better."""

OBJECTIVES: Final[dict[str, Literal["min", "max"]]] = {**METRICS, "latency_ms": "min", "num_parameters": "min"}
"""What a sweep may look for: a validation metric, milliseconds that the model takes for a picture, its parameters."""


def compute(
    labels: NDArray[np.int64],
    probabilities: NDArray[Any],
    positive: int | None,
    predictions: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """Measure predicted probabilities against the true labels.

    The predicted class is the most probable one, of equals the first, unless `predictions` say otherwise. `loss` is the
    mean cross-entropy in nats, with probabilities below `PROBABILITY_FLOOR` counted as that floor. With two classes,
    precision, recall, F1 and AUROC are those of the class `positive`. With more they are plain means over classes
    (macro, one against the rest): precision, recall and F1 over the classes that occur as label or prediction, AUROC
    over those that occur as label. A ratio with nothing in its denominator is 0; an AUROC without both positive and
    negative pictures is nan.

    Where a probability is nan the model diverged, and every metric is nan, which beats no value and reaches no bound.

    Args:
        labels: [N] integers in 0..C-1.
        probabilities: [N, C] floating point; each row sums to 1.
        positive: index of `dataset.positive_class` for two classes, None for more.
        predictions: [N] integers in 0..C-1, where a threshold decides rather than the largest probability.

    Returns:
        One value for each key of `METRICS`, in that order.

    Raises:
        UserError: if there are no pictures, or `positive` does not fit the number of classes.
        ValueError: if the arrays do not fit together, or hold logits in place of probabilities.
    """
    _check(labels, probabilities, positive)
    if np.isnan(probabilities).any():
        return dict.fromkeys(METRICS, float("nan"))

    # At function level: scikit-learn takes a second to import, and whoever validates a config needs only METRICS.
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    if predictions is None:
        predictions = probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predictions, labels=None if positive is None else [positive], average="macro", zero_division=0
    )
    return {
        "loss": float(cross_entropies(labels, probabilities).mean()),
        "accuracy": float(accuracy_score(labels, predictions)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auroc": _auroc(labels, probabilities, range(probabilities.shape[1]) if positive is None else [positive]),
    }


def cross_entropies(labels: NDArray[np.int64], probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cross-entropy `[N]` of each picture in nats; `loss` is their mean."""
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.maximum(of_label, PROBABILITY_FLOOR))
    return losses


def is_better(metric: str, value: float, than: float, delta: float = 0.0) -> bool:
    """Return whether `value` beats `than` by more than `delta` in the direction of `metric`.

    nan is beaten by every number and beats nothing.

    Raises:
        UserError: if `metric` is not a key of `METRICS`.
    """
    one_of("metric", metric, METRICS)
    if math.isnan(than):
        return not math.isnan(value)
    gain = than - value if METRICS[metric] == "min" else value - than
    return gain > delta


def _check(labels: NDArray[np.int64], probabilities: NDArray[Any], positive: int | None) -> None:
    if labels.ndim != 1 or probabilities.ndim != 2 or len(labels) != len(probabilities):
        raise ValueError(f"need labels [N] and probabilities [N, C], got {labels.shape} and {probabilities.shape}")
    num_pictures, num_classes = probabilities.shape
    if num_pictures == 0:
        raise UserError(
            "nothing to evaluate: the split is empty. Give it pictures with dataset.split.val_fraction, "
            "dataset.split.test_fraction or dataset.sample_fraction"
        )
    if num_classes < 2:
        raise ValueError(f"need probabilities of at least 2 classes, got {num_classes}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"need integer labels in 0..{num_classes - 1}, got {labels.dtype} {labels.min()}..{labels.max()}"
        )
    # A softmax in half precision overshoots 1 a little; logits leave the interval by far.
    if probabilities.min() < 0 or probabilities.max() > 1.01:
        raise ValueError(f"need probabilities, got {probabilities.min():g}..{probabilities.max():g}: are these logits?")
    if num_classes == 2 and positive not in (0, 1):
        raise UserError(
            "dataset.positive_class: required with two classes, because precision, recall, F1 and AUROC are those of "
            f"that class (index {positive} given, valid: 0 or 1). Name the class that is looked for, such as the defect"
        )
    if num_classes > 2 and positive is not None:
        raise UserError(
            f"dataset.positive_class: has no meaning with {num_classes} classes, whose metrics are macro averages. "
            "Remove it"
        )


def _auroc(labels: NDArray[np.int64], probabilities: NDArray[Any], classes: range | list[int]) -> float:
    """Return the mean over `classes` of the AUROC, leaving out those for which it is undefined.

    The area is Mann and Whitney's U over its maximum, ties counted half (Hanley and McNeil 1982,
    doi:10.1148/radiology.143.1.7063747). Sorting values and looking the positives up in them is exact and 30 times
    faster than scikit-learn's `roc_auc_score` for each class: 0.1 s in place of 3.1 s for 10,000 x 1,000.
    """
    areas = []
    for index in classes:
        is_positive = labels == index
        num_positive = int(is_positive.sum())
        num_pairs = num_positive * (len(labels) - num_positive)
        if num_pairs == 0:
            continue
        scores = np.sort(probabilities[:, index])
        positives = probabilities[is_positive, index]
        num_below = np.searchsorted(scores, positives, side="left")
        num_up_to = np.searchsorted(scores, positives, side="right")
        # The mean of both counts half of each tie; positives beaten by positives make num_positive² / 2 of the sum.
        wins = (num_below + num_up_to).sum() / 2 - num_positive**2 / 2
        areas.append(wins / num_pairs)
    return float(np.mean(areas)) if areas else float("nan")
