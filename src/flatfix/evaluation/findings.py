"""What the report says in words: its first sentences, and the rows of its tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatfix.evaluation.answers import Answers
from flatfix.evaluation.intervals import ClassRow, per_class
from flatfix.evaluation.measures import Measures
from flatfix.evaluation.wording import counted, percent

# The order in which a reader asks for them.
_METRICS = {
    "accuracy": ("Accuracy", "share decided rightly"),
    "recall": ("Recall", "share of them that is found"),
    "precision": ("Precision", "share of the found that is right"),
    "f1": ("F1", "harmonic mean of the two"),
    "auroc": ("AUROC", "chance to rank above the others"),
    "loss": ("Loss", "in nats; lower is better"),
}
_OF_ALL_CLASSES = ("accuracy", "loss")
_TILES_OF_TWO = ("accuracy", "recall", "precision", "auroc")
_TILES_OF_MANY = ("accuracy", "f1", "auroc", "loss")


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric in words.

    `validation` is None where that is not at hand. `span` is the interval's low end, the value and the high end in
    0..100, or None where there is no such scale.
    """

    name: str
    meaning: str
    validation: str | None
    test: str
    interval: str
    span: tuple[float, float, float] | None
    is_tile: bool


@dataclass(frozen=True, slots=True)
class TableRow:
    """The figures of one class, and what its pictures are most often taken for (empty where that is nothing)."""

    figures: ClassRow
    taken_for: str


def summary(test: Answers) -> list[str]:
    """Return the sentences that a reader should take away."""
    positive, is_wrong = test.decision.positive, ~test.is_right
    if positive is None:
        sentences = _of_many_classes(test)
    else:
        is_positive = test.labels == positive
        num, num_missed = _count(is_positive), _count(is_positive & is_wrong)
        num_others, num_alarms = _count(~is_positive), _count(~is_positive & is_wrong)
        sentences = [
            f"Of {counted(num, 'picture')} of {test.classes[positive]}, {num - num_missed:,} are found and "
            f"{num_missed:,} missed.",
            f"Of {counted(num_others, 'other picture')}, {num_alarms:,} raise a false alarm.",
        ]
    if test.decision.review:
        num_caught = _count(test.needs_review & is_wrong)
        sentences.append(
            f"A person would see {counted(_count(test.needs_review), 'picture')}"
            + (
                f", and {num_caught:,} of the {counted(_count(is_wrong), 'mistake')} in them."
                if is_wrong.any()
                else "."
            )
        )
    return sentences


def metric_rows(test: Answers, measures: Measures, monitor: str) -> list[MetricRow]:
    """Return every metric in the order of interest; the foremost and the monitored one become tiles."""
    positive = test.decision.positive
    tiles = {*(_TILES_OF_MANY if positive is None else _TILES_OF_TWO), monitor}
    rows = []
    for metric, (name, meaning) in _METRICS.items():
        if metric not in _OF_ALL_CLASSES:
            name = f"{name} of {test.classes[positive]}" if positive is not None else f"{name}, mean over classes"
        value, (low, high) = measures.test[metric], measures.intervals[metric]
        rows.append(
            MetricRow(
                name=name,
                meaning=meaning,
                validation=_written(metric, measures.validation[metric]) if measures.validation else None,
                test=_written(metric, value),
                interval=_interval(metric, low, high),
                span=None if metric == "loss" or math.isnan(low) else (100 * low, 100 * value, 100 * high),
                is_tile=metric in tiles,
            )
        )
    return rows


def decision_rows(test: Answers, measures: Measures) -> list[tuple[str, str]]:
    """Return how it is decided, and what follows from that on test: rows of a name and a text."""
    decision, is_right, needs_review = test.decision, test.is_right, test.needs_review
    before, after = (percent(error) for error in measures.calibration_error)
    rows = [
        ("Temperature", f"{decision.temperature:.3f}"),
        ("Calibration error", f"{before} → {after}" if decision.temperature != 1 else after),
    ]
    if decision.positive is None:
        return [*rows, ("Decided", decision.rule)]
    recall = f"{percent(measures.test['recall'])} ({_interval('recall', *measures.intervals['recall'])})"
    if measures.validation:
        recall += f"; on validation {percent(measures.validation['recall'])}"
    rows += [
        ("Threshold", f"{decision.threshold:.4f} for {test.classes[decision.positive]}"),
        ("Rule", decision.rule),
        ("Recall at the threshold", recall),
    ]
    if decision.review:
        num, outside = _count(needs_review), is_right[~needs_review]
        rows += [
            ("Review band", "{:.4f} to {:.4f}".format(*decision.review)),
            ("Pictures in the band", f"{num:,} of {len(is_right):,} ({percent(num / len(is_right))})"),
            ("Mistakes in the band", f"{_count(~is_right & needs_review):,} of {_count(~is_right):,}"),
            ("Accuracy outside it", percent(float(outside.mean()) if len(outside) else math.nan)),
        ]
    return rows


def class_rows(test: Answers) -> list[TableRow]:
    """Return a row for each class, the one with the smallest F1 first and those that never occur last."""
    counts = _confusions(test)
    rows = []
    for figures, row in zip(per_class(test.labels, test.predictions, test.classes), counts, strict=True):
        most = int(row.argmax())
        rows.append(TableRow(figures, f"{test.classes[most]} ({row[most]:,})" if row[most] else ""))
    return sorted(rows, key=lambda row: (math.isnan(row.figures.f1), row.figures.f1))


def _written(metric: str, value: float) -> str:
    """Write a metric: shares as percentages, AUROC and loss as they are."""
    if metric not in ("auroc", "loss"):
        return percent(value)
    return "–" if math.isnan(value) else f"{value:.3f}"


def _interval(metric: str, low: float, high: float) -> str:
    """Write an interval, its unit once."""
    if math.isnan(low):
        return "–"
    return f"{_written(metric, low)}–{_written(metric, high)}".replace("\u00a0%–", "–")


def _of_many_classes(test: Answers) -> list[str]:
    counts = _confusions(test)
    sentences = [f"{_count(test.is_right):,} of {counted(len(test.labels), 'picture')} are decided rightly."]
    if not counts.any():
        return sentences
    rows = [row for row in per_class(test.labels, test.predictions, test.classes) if row.num]
    least = min(rows, key=lambda row: row.recall)
    truth, taken = divmod(int(counts.argmax()), len(test.classes))
    return [
        *sentences,
        f"Found least is {least.name}: {round(least.recall * least.num):,} of {counted(least.num, 'picture')}.",
        f"The most frequent confusion is {test.classes[truth]} taken for {test.classes[taken]}, "
        f"{counted(int(counts[truth, taken]), 'time')}.",
    ]


def _confusions(test: Answers) -> NDArray[np.int64]:
    """Return how many pictures of each class `[C, C]` were taken for each other one; 0 on the diagonal."""
    num_classes = len(test.classes)
    cells = np.ravel_multi_index((test.labels, test.predictions), (num_classes, num_classes))
    counts = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    np.fill_diagonal(counts, 0)
    return counts


def _count(flags: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(flags))
