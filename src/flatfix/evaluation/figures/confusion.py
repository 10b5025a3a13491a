"""Which class was taken for which."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flatfix.evaluation.figures.style import FONT_SIZE, set_title
from flatfix.evaluation.wording import told_apart

# With more classes than this a cell is too small to be read, and colour alone speaks.
_MAX_WRITTEN_CLASSES = 20
# With more classes than this their names would overlap, and only every second, third ... is shown.
_MAX_NAMED_CLASSES = 120
_NAME_WIDTH = 24


def confusion_matrix(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw which class was taken for which: a row for each true class, a column for each predicted one.

    Colour is the percentage of the row, in one hue of growing darkness (safe for the colour-blind), on a square-root
    scale so that rare confusions show too. Up to 20 classes, each cell also holds its count and percentage.

    Args:
        labels: [N] true classes, as indices into `classes`.
        predictions: [N] predicted classes, likewise.
        classes: [C] names, in label order.
    """
    num_classes = len(classes)
    shape = (num_classes, num_classes)
    cells = np.ravel_multi_index((labels, predictions), shape)
    counts = np.bincount(cells, minlength=num_classes**2).reshape(shape)
    percentages = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    is_written = num_classes <= _MAX_WRITTEN_CLASSES
    cell = min(max(6 / num_classes, 0.62 if is_written else 0.13), 1.1)  # inches
    side = min(cell * num_classes, 16)
    # The axes fill the figure, so that cells have this very size; `save` widens it by whatever stands around them.
    figure = Figure(figsize=(side, side), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    image = axes.imshow(percentages, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    _name_cells(axes, [_wrapped(name) for name in classes] if is_written else told_apart(classes, _NAME_WIDTH), cell)
    axes.set_xlabel("Predicted class", fontsize=FONT_SIZE)
    axes.set_ylabel("True class", fontsize=FONT_SIZE)
    accuracy = 100 * np.trace(counts) / len(labels)
    set_title(figure, f"Accuracy {accuracy:.1f} %, n = {len(labels):,}", y=1 + 0.1 / side, va="bottom")
    if is_written:
        _write_cells(axes, counts, percentages, font_size=min(11, 14 * cell))
    else:
        figure.colorbar(
            image,
            cax=axes.inset_axes((1 + 0.15 / side, 0, 0.15 / side, 1)),
            label="% of the true class",
            ticks=[0, 1, 5, 10, 25, 50, 100],
        )
    return figure


def _write_cells(axes: Axes, counts: NDArray[np.int64], percentages: NDArray[np.float64], *, font_size: float) -> None:
    for (row, column), count in np.ndenumerate(counts):
        percentage = percentages[row, column]
        if count == 0:
            text, colour = "0", "grey"
        else:
            text = f"{count:,}\n" + ("<1 %" if percentage < 1 else f"{percentage:.0f} %")
            colour = "white" if percentage > 35 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=font_size, color=colour)


def _name_cells(axes: Axes, names: list[str], cell: float) -> None:
    step = math.ceil(len(names) / _MAX_NAMED_CLASSES)
    ticks, shown, size = range(0, len(names), step), names[::step], min(FONT_SIZE, 58 * cell * step)
    longest = max(len(line) for name in names for line in name.split("\n"))
    is_wider_than_cell = longest * 0.008 * size > 0.9 * cell  # a character is about 0.008 inches a point wide
    axes.set_yticks(ticks, shown, fontsize=size)
    axes.set_xticks(ticks, shown, fontsize=size, rotation=90 if is_wider_than_cell else 0)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, _NAME_WIDTH, max_lines=3, placeholder=" …"))
