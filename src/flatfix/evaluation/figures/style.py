"""What all figures share: their width, type and colours, and how they are written."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import StrMethodFormatter

from flatfix.files import replacing

# Okabe and Ito's colours, which every kind of colour vision tells apart (https://jfly.uni-koeln.de/color/).
BLUE = "#0072B2"
VERMILLION = "#D55E00"
ORANGE = "#E69F00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
YELLOW = "#F0E442"
INK = "#222222"
GREY = "#767676"

# A telephone shows a figure about 350 pixels wide: 10 points in 5 inches are 10 pixels there.
WIDTH = 5.0
FONT_SIZE = 10.0
LEGEND: Final[dict[str, Any]] = {
    "fontsize": FONT_SIZE,
    "framealpha": 0.85,  # what lies below shines through
    "edgecolor": "none",
    "borderpad": 0.3,
    "handlelength": 1.6,
}
_TICKS = [factor * 10**exponent for exponent in range(12) for factor in (1, 2, 5)]
_TITLE_WIDTH = 50  # characters


def stacked(title: str, height: float, ratios: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, one below the other with a common horizontal axis.

    Args:
        title: what the figure shows; wrapped.
        height: inches.
        ratios: relative height of each of the axes.
    """
    figure = blank(WIDTH, height)
    column = figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for axes in column:
        tidy(axes)
    set_title(figure, title)
    return figure, list(column)


def blank(width: float, height: float) -> Figure:
    """Return a figure of so many inches without anything in it."""
    figure = Figure(figsize=(width, height), dpi=160, layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07))
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Give axes a pale grid behind what is drawn, and no lines above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=FONT_SIZE, color=GREY)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def set_title(figure: Figure, title: str, width: int = _TITLE_WIDTH, **place: Any) -> None:
    """Write the title in lines of at most `width` characters at the left edge; `place` moves it from the top."""
    figure.suptitle(textwrap.fill(title, width), x=0.01, ha="left", fontsize=FONT_SIZE + 1, weight="bold", **place)


def scale_counts(axes: Axes) -> None:
    """Give bars of counts a square-root scale from 0, on which a handful shows beside hundreds."""
    top = max(axes.get_ylim()[1], 1)
    axes.set_yscale("function", functions=(lambda count: np.sqrt(np.maximum(count, 0)), np.square))
    axes.set_ylim(0, top)
    ends = [max(1, top * share) for share in (0.1, 0.4, 1)]  # on this scale a third of the height, two thirds, all
    axes.set_yticks([0, *sorted({max(tick for tick in _TICKS if tick <= end) for end in ends})])
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def smallest_font_size(figure: Figure) -> float:
    """Return the size in points of the smallest text."""
    return min(float(text.get_fontsize()) for text in figure.findobj(Text) if text.get_text())


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; an existing file is replaced whole or not at all."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name is no formula: a "$" in it must not start TeX
    with replacing(path) as partial, warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes: nothing that the run could mend.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        # A layout engine keeps everything inside; without one, the file grows around what stands outside.
        figure.savefig(partial, format="png", bbox_inches=None if figure.get_layout_engine() else "tight")
