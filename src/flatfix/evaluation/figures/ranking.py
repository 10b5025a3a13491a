"""How well the probabilities rank pictures: ROC and precision-recall curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flatfix.evaluation.answers import Answers
from flatfix.evaluation.figures.style import (
    BLUE,
    FONT_SIZE,
    GREEN,
    GREY,
    INK,
    LEGEND,
    ORANGE,
    PURPLE,
    VERMILLION,
    stacked,
)
from flatfix.evaluation.wording import percent, told_apart

_HEIGHT = 4.8
_WORST_COLOURS = (VERMILLION, ORANGE, PURPLE, GREEN)  # as many classes are named
_GRID = np.linspace(0, 1, 501)


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """What is found, rightly and falsely, as the threshold falls: one point for each distinct score, after (0, 0, 1).

    Attributes:
        recall: [K] part of the positives that is found.
        false_alarms: [K] part of the negatives that is found.
        precision: [K] part of what is found that is positive.
    """

    recall: NDArray[np.float64]
    false_alarms: NDArray[np.float64]
    precision: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Area under the ROC curve."""
        return float(np.trapezoid(self.recall, self.false_alarms))

    @property
    def average_precision(self) -> float:
        """Precision averaged over recall, each step at the precision of its end (as scikit-learn defines it)."""
        return float((np.diff(self.recall) * self.precision[1:]).sum())


def roc(answers: Answers) -> Figure:
    """Draw recall over false alarms for every threshold.

    With two classes: the curve of the positive class, and where on it the decision stands. With more, one class
    against the rest: the mean over classes, every class in grey, and by name those with the smallest areas.
    """
    curves = _curves(answers)
    areas = {index: curve.area for index, curve in curves.items()}
    figure, (axes,) = stacked(_title("AUROC", areas, answers), _HEIGHT)
    axes.plot([0, 1], [0, 1], ":", color=GREY, label="by chance")
    if answers.decision.positive is None:
        # At 0 a curve rises straight from 0.
        rows = {
            index: np.interp(_GRID, curve.false_alarms, curve.recall) * (_GRID > 0) for index, curve in curves.items()
        }
        _draw_classes(axes, rows, areas, answers.classes)
    elif curves:
        (curve,) = curves.values()
        axes.plot(curve.false_alarms, curve.recall, color=BLUE, linewidth=2)
        found, is_positive = (each == answers.decision.positive for each in (answers.predictions, answers.labels))
        point = (found[~is_positive].mean(), found[is_positive].mean())
        text = f"{percent(point[1])} recall,\n{percent(point[0])} false alarms"
        _mark(axes, answers, point, text, is_left=point[0] > 0.5)
    _finish(axes, "false alarms (share of the others)", "recall (share that is found)")
    return figure


def precision_recall(answers: Answers) -> Figure:
    """Draw precision over recall for every threshold, in the way of `roc`."""
    curves = _curves(answers)
    averages = {index: curve.average_precision for index, curve in curves.items()}
    figure, (axes,) = stacked(_title("Average precision", averages, answers), _HEIGHT)
    if answers.decision.positive is None:
        rows = {index: curve.precision[np.searchsorted(curve.recall, _GRID)] for index, curve in curves.items()}
        _draw_classes(axes, rows, averages, answers.classes)
    elif curves:
        (curve,) = curves.values()
        axes.axhline(curve.precision[-1], linestyle=":", color=GREY, label="by chance")
        axes.plot(curve.recall, curve.precision, drawstyle="steps-pre", color=BLUE, linewidth=2)
        found, is_positive = (each == answers.decision.positive for each in (answers.predictions, answers.labels))
        if found.any():
            point = (found[is_positive].mean(), is_positive[found].mean())
            text = f"{percent(point[1])} precision,\n{percent(point[0])} recall"
            _mark(axes, answers, point, text, is_left=point[0] > 0.4)
    _finish(axes, "recall (share that is found)", "precision (share of the found)")
    return figure


def _curves(answers: Answers) -> dict[int, _Curve]:
    """Return the curve of each class that has one: some pictures are of it, and some are not."""
    positive = answers.decision.positive
    return {
        index: _curve(answers.labels == index, answers.calibrated[:, index])
        for index in (range(len(answers.classes)) if positive is None else [positive])
        if 0 < np.count_nonzero(answers.labels == index) < len(answers.labels)
    }


def _curve(is_positive: NDArray[np.bool_], scores: NDArray[Any]) -> _Curve:
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.flatnonzero(np.append(np.diff(scores[order]), 1))
    hits, found = np.cumsum(is_positive[order])[last_of_equals], last_of_equals + 1
    return _Curve(
        recall=np.append(0, hits / hits[-1]),
        false_alarms=np.append(0, (found - hits) / (found[-1] - hits[-1])),
        precision=np.append(1, hits / found),
    )


def _title(measure: str, values: Mapping[int, float], answers: Answers) -> str:
    if not values:
        return f"{measure} is undefined: all pictures are of one class"
    worst = min(values, key=lambda index: values[index])
    name = told_apart(answers.classes)[worst]
    if answers.decision.positive is not None:
        return f"{measure} of {name}: {values[worst]:.3f}"
    mean = sum(values.values()) / len(values)
    return f"{measure} {mean:.3f} on average over classes; the lowest is {name} with {values[worst]:.3f}"


def _draw_classes(
    axes: Axes, rows: Mapping[int, NDArray[Any]], values: Mapping[int, float], classes: Sequence[str]
) -> None:
    """Draw a curve for each class over the common grid, the mean, and by name the worst."""
    if not rows:
        return
    worst = sorted(values, key=lambda index: values[index])[: len(_WORST_COLOURS)]
    for number, index in enumerate(index for index in rows if index not in worst):
        axes.plot(_GRID, rows[index], color="#BBBBBB", linewidth=0.6, label="other classes" if number == 0 else None)
    names = told_apart(classes)
    for colour, index in zip(_WORST_COLOURS, worst, strict=False):
        label = f"{values[index]:.3f} {names[index]}"  # matplotlib leaves out what begins with "_"
        axes.plot(_GRID, rows[index], color=colour, linewidth=1.5, label=label)
    axes.plot(_GRID, np.mean(list(rows.values()), axis=0), color=BLUE, linewidth=2.5, label="mean over classes")


def _mark(axes: Axes, answers: Answers, point: tuple[float, float], text: str, *, is_left: bool) -> None:
    """Mark where the decision stands; the text goes below it, to the side that is free."""
    axes.plot(*point, "o", color=VERMILLION, markersize=8, markeredgecolor="white", zorder=5)
    axes.annotate(
        f"threshold {answers.decision.threshold:.3f}:\n{text}",
        point,
        xytext=(-8 if is_left else 8, -10),
        textcoords="offset points",
        ha="right" if is_left else "left",
        va="top",
        fontsize=FONT_SIZE,
        color=INK,
    )


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=FONT_SIZE)
    axes.set_ylabel(y_label, fontsize=FONT_SIZE)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles, names, loc="outside lower center", ncols=2 if max(map(len, names), default=0) < 24 else 1, **LEGEND
    )
