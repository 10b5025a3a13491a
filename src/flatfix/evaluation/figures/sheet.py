"""Pictures side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flatfix.evaluation.figures.style import INK, set_title
from flatfix.evaluation.wording import shortened

_COLUMNS = 6
_CELL = 1.4  # inches from the left edge of a picture to the next one's
_PICTURE = 0.92  # of a cell's width
_LINE = 0.13  # inches
_FONT_SIZE = 8.0
_CHARACTERS = 20  # in a line below a picture


def contact_sheet(pictures: NDArray[np.uint8], captions: Sequence[Sequence[str]], title: str) -> Figure:
    """Draw pictures in rows of six, each with its caption below.

    Args:
        pictures: [K, H, W, 3], at least one.
        captions: [K] lines of equal number, or nothing for no captions; a long line loses its middle.
        title: what the pictures have in common.
    """
    num, height, width, _ = pictures.shape
    num_columns, num_rows = min(num, _COLUMNS), math.ceil(num / _COLUMNS)
    picture_height = _CELL * _PICTURE * height / width
    row_height = picture_height + _LINE * (1 + max(map(len, captions), default=0))
    figure = Figure(figsize=(_CELL * num_columns, row_height * num_rows), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    # One picture of all: drawing each by itself takes ten times as long. Its pixels are those of the pictures.
    cell_width, cell_height = round(width / _PICTURE), round(height * row_height / picture_height)
    mosaic = np.full((num_rows * cell_height, num_columns * cell_width, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // _COLUMNS * cell_height, number % _COLUMNS * cell_width
        mosaic[top : top + height, left : left + width] = picture
    axes.imshow(mosaic, aspect="auto", interpolation="bilinear")
    for number, lines in enumerate(captions):
        top, left = number // _COLUMNS * cell_height, number % _COLUMNS * cell_width
        text = "\n".join(shortened(line, _CHARACTERS) for line in lines)
        axes.text(left - 0.5, top + 1.03 * height, text, fontsize=_FONT_SIZE, color=INK, va="top", linespacing=1.1)
    set_title(figure, title, width=max(40, int(_CELL * num_columns * 11)), y=1.01, va="bottom")
    return figure
