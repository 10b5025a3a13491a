"""How the probabilities of right and of wrong answers are distributed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from flatfix.evaluation.answers import Answers
from flatfix.evaluation.figures.style import BLUE, FONT_SIZE, INK, LEGEND, VERMILLION, YELLOW, scale_counts, stacked
from flatfix.evaluation.wording import counted, percent, shortened

_BINS = np.linspace(0, 1, 41).tolist()


def score_histogram(answers: Answers) -> Figure:
    """Draw how many pictures have which probability: blue where the decision is right, vermillion where it is wrong.

    With two classes: the probability of the positive class, one panel for each true class, with the threshold and the
    review band. With more: the probability of the predicted class, one panel for right and one for wrong answers.
    Heights are on a square-root scale, so that a handful of pictures shows beside hundreds.
    """
    is_right, scores = answers.is_right, answers.scores
    decision, positive = answers.decision, answers.decision.positive
    if positive is None:
        panels = [("right", is_right), ("wrong", ~is_right)]
    else:
        panels = [
            (f"true class {shortened(answers.classes[index])}", answers.labels == index)
            for index in (positive, 1 - positive)
        ]
    title = _confidence_title(answers) if positive is None else _threshold_title(answers, positive)
    figure, column = stacked(title, height=4.8, ratios=(1, 1))
    for axes, (name, is_in) in zip(column, panels, strict=True):
        axes.hist(
            [scores[is_in & is_right], scores[is_in & ~is_right]],
            bins=_BINS,
            stacked=True,
            color=[BLUE, VERMILLION],
            label=["right", "wrong"],
        )
        axes.set_title(f"{name}: {counted(int(is_in.sum()), 'picture')}", fontsize=FONT_SIZE, loc="left")
        if positive is not None:
            axes.axvline(decision.threshold, color=INK, linewidth=1.2, linestyle="--", label="threshold")
        if decision.review:
            axes.axvspan(*decision.review, color=YELLOW, alpha=0.45, linewidth=0, zorder=0, label="to review")
        axes.set_xlim(0, 1)
        scale_counts(axes)
    figure.legend(*column[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, **LEGEND)
    column[-1].set_xlabel(f"probability of {shortened(answers.scored)}", fontsize=FONT_SIZE)
    figure.supylabel("pictures (square-root scale)", fontsize=FONT_SIZE)
    return figure


def _confidence_title(answers: Answers) -> str:
    medians = [
        f"{percent(float(np.median(answers.scores[which])))} when {word}"
        for word, which in (("right", answers.is_right), ("wrong", ~answers.is_right))
        if which.any()
    ]
    return f"The median confidence is {' and '.join(medians)}"


def _threshold_title(answers: Answers, positive: int) -> str:
    is_positive, is_wrong = answers.labels == positive, ~answers.is_right
    alarms = counted(int((~is_positive & is_wrong).sum()), "false alarm")
    return (
        f"The threshold {answers.decision.threshold:.3f} misses {(is_positive & is_wrong).sum():,} of "
        f"{is_positive.sum():,} {shortened(answers.classes[positive])} and raises {alarms}"
    )
