"""How training went, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flatfix.evaluation.figures.style import BLUE, FONT_SIZE, GREY, INK, LEGEND, ORANGE, stacked
from flatfix.evaluation.metrics import is_better

History = Sequence[Mapping[str, float]]
_MAX_MARKED_EPOCHS = 40  # with more, the marks of the epochs hide the curve


def best_epoch(history: History, monitor: str) -> int | None:
    """Return the epoch whose validation metric is the best, of equals the first; None where no epoch has a value.

    Args:
        history: one row an epoch, with `epoch` from 0 and `val/<monitor>`.
        monitor: a key of `METRICS`.
    """
    best, best_value = None, math.nan
    for row in history:
        value = row.get(f"val/{monitor}", math.nan)
        if is_better(monitor, value, than=best_value):
            best, best_value = int(row["epoch"]), value
    return best


def learning_curves(history: History, monitor: str) -> Figure:
    """Draw loss, the monitored metric (accuracy where that is the loss) and the learning rate over the epochs.

    Args:
        history: one row an epoch, at least one: `epoch` from 0, shown from 1, `train/<metric>`, `val/<metric>` and
            `learning_rate`. A value may be absent or nan.
        monitor: the metric that chose the checkpoint; the epoch that it chose is marked.
    """
    metric = "accuracy" if monitor == "loss" else monitor
    best = best_epoch(history, monitor)
    figure, (loss, score, rate) = stacked(_title(history, monitor, best), height=5.4, ratios=(3, 3, 1.4))
    for axes, name in ((loss, "loss"), (score, metric)):
        _draw(axes, history, f"train/{name}", "train", ORANGE, "--")
        _draw(axes, history, f"val/{name}", "validation", BLUE, "-")
    _draw(rate, history, "learning_rate", "learning rate", INK, "-")

    loss.set_ylabel("loss (nats)", fontsize=FONT_SIZE)
    score.set_ylabel({"f1": "F1", "auroc": "AUROC"}.get(metric, metric), fontsize=FONT_SIZE)
    rate.set_ylabel("learning\nrate", fontsize=FONT_SIZE)
    rate.set_ylim(bottom=0)
    rate.set_xlabel("epoch", fontsize=FONT_SIZE)
    rate.set_xlim(history[0]["epoch"] + 0.5, history[-1]["epoch"] + 1.5)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (loss, score, rate):
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3 if axes is rate else 5, steps=[1, 2, 2.5, 5, 10]))
        if best is not None:
            axes.axvline(best + 1, color=GREY, linewidth=1.2, linestyle=":", label="best epoch")
    if loss.get_legend_handles_labels()[1]:
        loss.legend(loc="best", **LEGEND)
    figure.align_ylabels()
    return figure


def _title(history: History, monitor: str, best: int | None) -> str:
    if best is None:
        return f"No epoch has a validation {monitor}"
    value = next(row[f"val/{monitor}"] for row in history if row["epoch"] == best)
    return f"Best validation {monitor} {value:.4f} in epoch {best + 1} of {int(history[-1]['epoch']) + 1}"


def _draw(axes: Axes, history: History, key: str, label: str, colour: str, line: str) -> None:
    points = [(row["epoch"] + 1, row[key]) for row in history if key in row]
    if points:
        marker = "o" if len(points) <= _MAX_MARKED_EPOCHS else None
        axes.plot(*zip(*points, strict=True), line, color=colour, label=label, marker=marker, markersize=3.5)
