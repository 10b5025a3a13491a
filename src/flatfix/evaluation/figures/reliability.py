"""Whether probabilities can be believed."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from flatfix.evaluation import calibration
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.calibration import Reliability
from flatfix.evaluation.figures.style import BLUE, FONT_SIZE, GREY, LEGEND, ORANGE, scale_counts, stacked
from flatfix.evaluation.wording import percent, shortened


def reliability(answers: Answers) -> Figure:
    """Draw how often the model is right where it claims to be so sure, before and after its calibration.

    On the diagonal it is right as often as it claims. Vertical lines are the 95 % intervals after calibration; below
    stands the number of pictures in each bin. Claims and errors are those of `evaluation.calibration`.
    """
    positive, is_calibrated = answers.decision.positive, answers.decision.temperature != 1
    before, after = (
        calibration.reliability(answers.labels, each, positive) for each in (answers.probabilities, answers.calibrated)
    )
    error_before, error_after = (
        calibration.expected_calibration_error(answers.labels, each, positive)
        for each in (answers.probabilities, answers.calibrated)
    )
    title = _title(answers.decision.temperature, error_before, error_after)
    figure, (curve, counts) = stacked(title, height=4.8, ratios=(4, 1))
    curve.plot([0, 1], [0, 1], ":", color=GREY, label="as often as claimed")
    if is_calibrated:
        _draw(curve, before, "s--", ORANGE, f"before: error {percent(error_before)}")
    _draw(curve, after, "o-", BLUE, f"{'after: ' * is_calibrated}error {percent(error_after)}")
    curve.vlines(after.confidence, after.low, after.high, color=BLUE, alpha=0.5)
    curve.set_ylim(-0.02, 1.02)
    curve.yaxis.set_major_formatter(PercentFormatter(1, symbol="\u00a0%"))
    curve.legend(loc="best", **LEGEND)

    counts.bar(after.edges[:-1], after.counts, width=1 / len(after.counts), align="edge", color=GREY, edgecolor="white")
    scale_counts(counts)
    counts.set_xlim(0, 1)
    counts.xaxis.set_major_formatter(PercentFormatter(1, symbol="\u00a0%"))
    name = shortened(answers.scored)
    curve.set_ylabel(f"how often it is {'right' if positive is None else name}", fontsize=FONT_SIZE)
    counts.set_ylabel("pictures", fontsize=FONT_SIZE)
    counts.set_xlabel(f"probability of {name}", fontsize=FONT_SIZE)
    figure.align_ylabels()
    return figure


def _draw(axes: Axes, bins: Reliability, style: str, colour: str, label: str) -> None:
    is_used = bins.counts > 0
    axes.plot(bins.confidence[is_used], bins.frequency[is_used], style, color=colour, markersize=5, label=label)


def _title(temperature: float, error_before: float, error_after: float) -> str:
    before, after = percent(error_before), percent(error_after)
    if temperature == 1:
        return f"The calibration error is {after}"
    if before == after:
        return f"Temperature {temperature:.3f} leaves the calibration error at {after}"
    verb = "lowers" if error_after < error_before else "raises"
    return f"Temperature {temperature:.3f} {verb} the calibration error from {before} to {after}"
