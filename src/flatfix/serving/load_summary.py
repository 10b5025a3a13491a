"""What a load run found: counts, latencies and accuracy, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from flatfix.evaluation.intervals import proportion_interval

PERCENTILES = (50, 95, 99)
PREDICTED = "predicted_class_total"

Counts = dict[str, float]


class Outcome(NamedTuple):
    """Say what became of one request.

    Attributes:
        picture: that was sent.
        begun_s: when, in seconds since the first request began.
        seconds: until the answer was whole, or it was clear that there would be none.
        status: of HTTP; None where there was no answer.
        reason: why there is no prediction; empty where there is one.
        label: the class that was predicted, or None.
        version: of the model, or None.
        classes: of the model.
    """

    picture: Path
    begun_s: float
    seconds: float
    status: int | None
    reason: str = ""
    label: str | None = None
    version: str | None = None
    classes: frozenset[str] = frozenset()


def predicted_classes(metrics: str) -> Counts:
    """Return `predicted_class_total` by `class_id`, from the text of `/metrics`.

    Raises:
        ValueError: when it is not in the form of Prometheus.
    """
    return {
        sample.labels["class_id"]: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == PREDICTED and "class_id" in sample.labels
    }


def summarise(
    outcomes: Sequence[Outcome], seconds: float, before: Counts | None, after: Counts | None
) -> dict[str, Any]:
    """Return what `summary.json` says of the requests.

    Args:
        outcomes: of the requests, in the order in which they ended.
        seconds: from the first request to the last answer.
        before: `predicted_class_total` before the first request; None where `/metrics` did not say.
        after: likewise, after the last answer.
    """
    answered = [outcome for outcome in outcomes if not outcome.reason]
    return {
        "seconds": seconds,
        "answered": len(answered),
        "answered_per_second": len(answered) / seconds,
        "latency_ms": latencies(answered),
        "by_status": _counts(str(outcome.status) if outcome.status else "none" for outcome in outcomes),
        "by_class": _counts(str(outcome.label) for outcome in answered),
        "errors": _counts(outcome.reason for outcome in outcomes if outcome.reason),
        "model_versions": _counts(str(outcome.version) for outcome in answered),
        PREDICTED: None if before is None or after is None else _change(before, after),
        "accuracy": accuracy(answered),
    }


def latencies(outcomes: Sequence[Outcome]) -> dict[str, float] | None:
    """Return mean, percentiles and maximum in milliseconds; None of no request."""
    if not outcomes:
        return None
    times = 1000 * np.array([outcome.seconds for outcome in outcomes])
    # Each is the latency of a request that was made, not one between two of them.
    percentiles = {f"p{each}": float(np.percentile(times, each, method="inverted_cdf")) for each in PERCENTILES}
    return {"mean": float(times.mean()), **percentiles, "max": float(times.max())}


def accuracy(answered: Sequence[Outcome]) -> dict[str, Any] | None:
    """Compare predictions with the names of the folders that the pictures lie in; None where no name is a class.

    Each picture counts once, with its first answer: asked again, it tells nothing new. Pictures in folders that bear no
    class's name are left out. The intervals are Wilson's, of 95 %.
    """
    first: dict[Path, Outcome] = {}
    for outcome in answered:
        if outcome.picture.parent.name in outcome.classes:
            first.setdefault(outcome.picture, outcome)
    if not first:
        return None
    is_right: dict[str, list[bool]] = {}
    for picture, outcome in first.items():
        is_right.setdefault(picture.parent.name, []).append(outcome.label == picture.parent.name)
    return {
        **_share([each for of_class in is_right.values() for each in of_class]),
        "by_class": {label: _share(is_right[label]) for label in sorted(is_right)},
    }


def _share(is_right: Sequence[bool]) -> dict[str, Any]:
    low, high = proportion_interval(sum(is_right), len(is_right))
    return {
        "pictures": len(is_right),
        "right": sum(is_right),
        "accuracy": sum(is_right) / len(is_right),
        "interval": [low, high],
    }


def _change(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """Return what was counted before and after, and the difference; a class appears with its first picture."""
    change = {class_id: value - before.get(class_id, 0) for class_id, value in after.items()}
    return {"before": dict(before), "after": dict(after), "change": change}


def _counts(words: Any) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))
