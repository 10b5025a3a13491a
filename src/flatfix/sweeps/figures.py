"""The figures of a sweep as PNG files, in the manner of the evaluation's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from flatfix.evaluation.figures.style import (
    BLUE,
    FONT_SIZE,
    GREY,
    INK,
    LEGEND,
    ORANGE,
    PURPLE,
    VERMILLION,
    WIDTH,
    blank,
    save,
    set_title,
    stacked,
    tidy,
)
from flatfix.evaluation.wording import counted, shortened
from flatfix.sweeps.summary import figure as written
from flatfix.sweeps.summary import setting, share, unbeaten
from flatfix.sweeps.table import Row
from flatfix.sweeps.view import View, label

if TYPE_CHECKING:
    from optuna import Study

PALE = "#9FB0BE"  # what did not last
_COLOURS = {"complete": BLUE, "pruned": PALE, "failed": VERMILLION, "not over": PURPLE}
_MIN_COMPLETE_FOR_IMPORTANCES = 4
_MANY = 10_000  # from which on an axis counts in thousands and millions
_WIDE = 20  # times the smallest value: what less is better of is then shown on a logarithmic scale


def draw(study: Study, objectives: Sequence[str], folder: Path) -> list[Path]:
    """Write what can be drawn of a study, each figure as `<name>.png`; `left_out` tells what could not be, and why.

    Args:
        study: with the attributes that `flatfix.sweeps.trials` names.
        objectives: their names, in the order of the study's directions.
        folder: made when it is missing.
    """
    view = View.of(study, objectives)
    missing = left_out(view)
    paths = []
    for name in fitting(view):
        if name not in missing:
            save(DRAWINGS[name](view), folder / f"{name}.png")
            paths.append(folder / f"{name}.png")
    return paths


def fitting(view: View) -> list[str]:
    """Return the names of the figures that fit the number of objectives, whether they can be drawn or not.

    With two objectives trials report nothing on the way, for nothing prunes them.
    """
    return [name for name in DRAWINGS if name != ("pareto" if len(view.objectives) == 1 else "curves")]


def left_out(view: View) -> dict[str, str]:
    """Return the name of each fitting figure that cannot be drawn, and why."""
    num_complete, num_params = len(view.complete), len(view.spaces)
    missing = {}
    if not any(view.curves.values()):
        missing["curves"] = "no trial reported an epoch"
    if num_params == 0:
        missing["slices"] = "no parameter has more than one value"
    if num_params < 2:
        missing |= dict.fromkeys(("importances", "parallel"), "fewer than two parameters have more than one value")
    elif num_complete < 2:
        missing["parallel"] = "fewer than two trials are complete"
    if num_complete < _MIN_COMPLETE_FOR_IMPORTANCES:
        missing["importances"] = f"fewer than {_MIN_COMPLETE_FOR_IMPORTANCES} trials are complete"
    elif "importances" not in missing:
        if not any(sum(shares.values()) for shares in view.importances):
            missing["importances"] = "no parameter makes a difference"
        elif len(view.judged) < 2:
            missing["importances"] = "fewer than two parameters are in every complete trial"
    if num_complete == 0:
        missing |= dict.fromkeys(("history", "importances", "parallel", "slices", "pareto"), "no trial is complete")
    return {name: missing[name] for name in fitting(view) if name in missing}


def history(view: View) -> Figure:
    """Draw what each trial reached, the best so far, and how long each was trained."""
    num = len(view.objectives)
    figure, (*panels, epochs) = stacked(_history_title(view), height=2.6 + 1.7 * num, ratios=(*[2.4] * num, 1.2))
    for index, axes in enumerate(panels):
        values = [row.values[index] for row in view.complete]
        best = np.minimum.accumulate(np.multiply(values, view.signs[index])) * view.signs[index]
        numbers = [row.number for row in view.complete]
        axes.step([*numbers, view.rows[-1].number], [*best, best[-1]], where="post", color=ORANGE, label="best so far")
        axes.plot(numbers, values, "o", color=BLUE, markersize=4.5, label="complete")
        _scale_objective(axes, view, index)
    for kind, colour in _COLOURS.items():
        its = [row for row in view.rows if _kind(row) == kind]
        if its:
            epochs.bar([row.number for row in its], [row.epochs for row in its], color=colour, width=0.8, label=kind)
    for row in view.rows:
        if _kind(row) == "failed":  # an epoch may be too low to be seen, and there may be none
            place: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "va": "center"}
            epochs.annotate("×", (row.number, row.epochs), color=VERMILLION, fontsize=FONT_SIZE, **place)
    epochs.set_ylabel("epochs", fontsize=FONT_SIZE)
    epochs.set_xlabel("trial", fontsize=FONT_SIZE)
    epochs.set_xlim(-0.7, view.rows[-1].number + 0.7)
    epochs.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    epochs.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True, steps=[1, 2, 5, 10]))
    _legend_below(figure, [panels[0], epochs])
    figure.align_ylabels()
    return figure


def curves(view: View) -> Figure:
    """Draw what the trials reported epoch by epoch: where pruned ones ended, and the best one."""
    best = {row.number for row in unbeaten(view.rows, view.signs)}
    pruned = sum(row.state == "pruned" for row in view.rows)
    of = counted(sum(bool(curve) for curve in view.curves.values()), "trial")
    figure, (axes,) = stacked(f"{pruned or 'None'} of {of} pruned on the way", height=3.6)
    order = sorted(view.rows, key=lambda row: (row.number in best, row.state == "complete"))
    seen: set[str] = set()
    for row in order:
        if not (curve := view.curves[row.number]):
            continue
        is_best = row.number in best
        kind, colour = ("best", ORANGE) if is_best else (_kind(row), _COLOURS[_kind(row)])
        width, size = (2.2, 4) if is_best else (0.9, 2.6)
        axes.plot(*zip(*curve, strict=True), color=colour, linewidth=width, label=None if kind in seen else kind)
        axes.plot(*curve[-1], "o", color=colour, markersize=size)
        seen.add(kind)
    _scale_objective(axes, view, 0)
    axes.set_xlabel("epoch", fontsize=FONT_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend_below(figure, [axes])
    return figure


def importances(view: View) -> Figure:
    """Draw how much of the differences between trials each parameter explains."""
    shares = view.importances
    names = view.judged[::-1]
    first = next(index for index, its in enumerate(shares) if sum(its.values()))
    top = max(shares[first], key=lambda name: shares[first][name])
    title = (
        f"{top} explains {share(shares[first][top])} of the differences in {label(view.objectives[first])} "
        f"between {len(view.complete)} trials"
    )
    figure, (axes,) = stacked(title, height=1.4 + 0.34 * len(names) * (1 + 0.6 * (len(shares) - 1)))
    height = 0.8 / len(shares)
    for index, (its, colour) in enumerate(zip(shares, (BLUE, ORANGE), strict=False)):
        places = np.arange(len(names)) + (0.4 - height * (index + 0.5) if len(shares) > 1 else 0)
        widths = [its.get(name, 0) for name in names]
        bars = axes.barh(places, widths, height=height, color=colour, label=label(view.objectives[index]))
        axes.bar_label(bars, list(map(share, widths)), padding=3, fontsize=FONT_SIZE, color=INK)
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.12 * max(max(its.values(), default=0) for its in shares))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda part, _: share(part)))
    axes.set_xlabel("share explained (fANOVA)", fontsize=FONT_SIZE)
    if len(shares) > 1:
        _legend_below(figure, [axes])
    return figure


def parallel(view: View) -> Figure:
    """Draw each complete trial as a line through its parameters to what it reached; the best is marked."""
    num_axes = len(view.spaces) + len(view.objectives)
    inches = max(WIDTH, 0.95 * num_axes)
    figure = blank(inches, 3.9)
    axes = figure.subplots()
    rows = sorted(view.complete, key=lambda row: -view.signs[0] * row.values[0])
    best = {row.number for row in unbeaten(view.rows, view.signs)}
    places = [_param_places(view, name, rows) for name in view.spaces]
    places += [_objective_places(view, index, rows) for index in range(len(view.objectives))]
    shades = colormaps["Blues"](np.linspace(0.25, 0.95, len(rows)))
    for row, shade, *line in zip(rows, shades, *(at for at, _ in places), strict=True):
        is_best = row.number in best
        colour, width = (ORANGE, 2.4 if len(best) == 1 else 1.6) if is_best else (tuple(shade), 1.1)
        axes.plot(line, color=colour, linewidth=width, zorder=3 if is_best else 2)
    for x, (_, ticks) in enumerate(places):
        axes.axvline(x, 0, 1, color=GREY, linewidth=0.9, zorder=4)
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
        for y, text in ticks.items():
            axes.text(x + 0.04, y, text, fontsize=8, color=INK, va="center", zorder=5, bbox=box)
    axes.set_xlim(-0.1, num_axes - 0.5)
    axes.set_ylim(-0.16, 1.06)
    axes.set_yticks([])
    names = [*view.spaces, *map(label, view.objectives)]
    axes.set_xticks(range(num_axes), [_folded(name) for name in names], fontsize=9, rotation=0)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    which = "the best" if len(view.objectives) == 1 else "beaten by none in both"
    set_title(
        figure, f"{counted(len(rows), 'complete trial')}: the darker, the better; orange: {which}", int(10 * inches)
    )
    return figure


def slices(view: View) -> Figure:
    """Draw what was reached over each parameter, and below where trials were pruned or failed."""
    num = len(view.objectives)
    names = list(view.spaces)
    num_columns = 2 if num == 2 or len(names) > 1 else 1
    num_rows = len(names) if num == 2 else math.ceil(len(names) / num_columns)
    figure = blank(WIDTH, 1.4 + 2.1 * num_rows)
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for number, (name, index) in enumerate((name, index) for name in names for index in range(num)):
        _draw_slice(panels[number], view, name, index)
        if num == 1 and number % num_columns:
            panels[number].set_ylabel("")
    for axes in panels[num * len(names) :]:
        axes.set_visible(False)
    set_title(figure, "What was reached with each value of a parameter")
    _legend_below(figure, panels)
    return figure


def pareto(view: View) -> Figure:
    """Draw both objectives of every complete trial; those that none beats in both are joined."""
    front = unbeaten(view.rows, view.signs)
    inside = {row.number for row in front}
    title = f"{len(front)} of {counted(len(view.complete), 'complete trial')} beaten by none in both"
    figure, (axes,) = stacked(title, height=4.2)
    beaten = [row.values for row in view.complete if row.number not in inside]
    if beaten:
        axes.plot(*zip(*beaten, strict=True), "o", color=PALE, markersize=4.5, label="beaten")
    points = [row.values for row in front]
    # From the best of the first objective on, each step first loses in that one and then gains in the other.
    step: dict[str, Any] = {"drawstyle": "steps-post", "linewidth": 1.2}
    axes.plot(*zip(*points, strict=True), "o-", color=BLUE, markersize=6, label="beaten by none", **step)
    _name_objective(axes, view, 0, is_x=True)
    _name_objective(axes, view, 1)
    _number(axes, front)
    _legend_below(figure, [axes])
    return figure


DRAWINGS: Final[dict[str, Callable[[View], Figure]]] = {
    "pareto": pareto,
    "history": history,
    "curves": curves,
    "importances": importances,
    "parallel": parallel,
    "slices": slices,
}
"""The figures by the names of their files, in the order in which they are read."""


def _kind(row: Row) -> str:
    """Return what became of a trial, as figures tell it apart."""
    return {"retried": "failed", "running": "not over", "waiting": "not over"}.get(row.state, row.state)


def _history_title(view: View) -> str:
    best = []
    for index, (name, sign) in enumerate(zip(view.objectives, view.signs, strict=True)):
        row = min(view.complete, key=lambda row: sign * row.values[index])
        best.append(f"{label(name)} {written(row.values[index])}: trial {row.number}")
    return f"Best {'; '.join(best)}"


def _name_objective(axes: Axes, view: View, index: int, *, is_x: bool = False) -> None:
    """Name an axis after an objective; where less is better and it spreads over decades, on a logarithmic scale."""
    axis = axes.xaxis if is_x else axes.yaxis
    way = "higher" if view.signs[index] < 0 else "lower"
    gap = " " if is_x else "\n"
    axis.set_label_text(f"{label(view.objectives[index])}{gap}({way} is better)", fontsize=FONT_SIZE)
    low, high = (axes.dataLim.intervalx if is_x else axes.dataLim.intervaly).tolist()
    if view.signs[index] > 0 and 0 < low < high / _WIDE:
        (axes.set_xscale if is_x else axes.set_yscale)("log")
    else:
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if high >= _MANY or axis.get_scale() == "log":
        axis.set_major_formatter(FuncFormatter(_in_thousands))
        axis.set_minor_formatter(NullFormatter())


def _scale_objective(axes: Axes, view: View, index: int) -> None:
    """Name the vertical axis; where more is better, draw values far below the others as arrows at its end."""
    _name_objective(axes, view, index)
    if view.signs[index] > 0:
        return
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    low, high = np.quantile(values, (0.25, 0.75))
    edge, top = low - 3 * (high - low), values.max()
    if low == high or values.min() >= edge:
        return
    bottom = edge - 0.06 * (top - edge)
    axes.set_ylim(bottom, top + 0.06 * (top - edge))
    for line in list(axes.lines):
        x, y = (np.asarray(data, float) for data in line.get_data())
        if (below := y < bottom).any() and line.get_marker() != "None":
            axes.plot(x[below], np.full(below.sum(), bottom), "v", color=line.get_color(), markersize=5, clip_on=False)


def _in_thousands(value: float, _: int) -> str:
    """Write 11M for 11,000,000."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if unit <= value < 1000 * unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    named = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=4, **LEGEND)


def _number(axes: Axes, front: Sequence[Row]) -> None:
    """Write the numbers of trials beside their points, where they do not hide one another."""
    axes.autoscale_view()  # which would else wait until it is drawn
    taken: list[NDArray[np.float64]] = []
    for row in front:
        x, y = row.values
        place = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        if all((np.abs(place - other) > (0.05, 0.06)).any() for other in taken):
            axes.annotate(f"{row.number}", (x, y), (5, 5), textcoords="offset points", fontsize=8, color=INK)
            taken.append(place)


Places = tuple[list[float], dict[float, str]]  # where the line of each trial crosses an axis, and that axis' ticks


def _param_places(view: View, name: str, rows: Sequence[Row]) -> Places:
    """Return heights from 0 to 1, over the whole space; a trial without the parameter is below."""
    space, absent = view.spaces[name], -0.13
    if isinstance(space, CategoricalDistribution):
        tried = _choices(space, rows, name)
        step = 1 / max(1, len(tried) - 1)
        heights = {choice: number * step for number, choice in enumerate(tried)}
        ticks = {height: shortened(setting(choice), 14) for choice, height in heights.items()}
        at = [heights[row.params[name]] if name in row.params else absent for row in rows]
    else:
        scale: Callable[[float], float] = math.log if space.log else float
        low, high = scale(space.low), scale(space.high)
        at = [(scale(row.params[name]) - low) / (high - low) if name in row.params else absent for row in rows]
        ticks = {0.0: setting(space.low), 1.0: setting(space.high)}
        if space.log:
            decades = range(math.ceil(math.log10(space.low)), math.floor(math.log10(space.high)) + 1)
            marks = {(math.log(10.0**decade) - low) / (high - low): f"{10.0**decade:g}" for decade in decades}
            ticks |= {height: text for height, text in marks.items() if 0.1 < height < 0.9}
    return at, ticks | ({absent: "not tried"} if absent in at else {})


def _objective_places(view: View, index: int, rows: Sequence[Row]) -> Places:
    """Return heights from 0 for the worst to 1 for the best."""
    costs = np.array([view.signs[index] * row.values[index] for row in rows])
    worst, best = costs.max(), costs.min()
    if worst == best:
        return [0.5] * len(rows), {0.5: written(view.signs[index] * best)}
    ticks = {0.0: written(view.signs[index] * worst), 1.0: written(view.signs[index] * best)}
    return list((worst - costs) / (worst - best)), ticks


def _choices(space: CategoricalDistribution, rows: Sequence[Row], name: str) -> list[Any]:
    """Return the choices that were tried: numbers by size, others as they were given."""
    tried = [
        choice for choice in space.choices if any(row.params[name] == choice for row in rows if name in row.params)
    ]
    is_number = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in tried)
    return sorted(tried) if is_number else tried


def _draw_slice(axes: Axes, view: View, name: str, index: int) -> None:
    tidy(axes)
    axes.tick_params(labelsize=8)
    best = {row.number for row in unbeaten(view.rows, view.signs)}
    space, its = view.spaces[name], [row for row in view.rows if name in row.params]
    if isinstance(space, CategoricalDistribution):
        tried = _choices(space, its, name)
        # Trials side by side, always in the same place.
        at = {row.number: tried.index(row.params[name]) + 0.36 * (row.number * 0.618 % 1 - 0.5) for row in its}
        axes.set_xticks(range(len(tried)), [shortened(setting(choice), 12) for choice in tried])
        axes.set_xlim(-0.5, len(tried) - 0.5)
        if sum(len(setting(choice)) for choice in tried) > 20:
            axes.tick_params(axis="x", rotation=20)
    else:
        at = {row.number: row.params[name] for row in its}
        _scale_param(axes, space)
    complete = [row for row in its if row.state == "complete"]
    plain = [(at[row.number], row.values[index]) for row in complete if row.number not in best]
    stars = [(at[row.number], row.values[index]) for row in complete if row.number in best]
    axes.plot(*_columns(plain), "o", color=BLUE, markersize=4, alpha=0.8, label="complete")
    size = 11 if len(best) == 1 else 8
    axes.plot(*_columns(stars), "*", color=ORANGE, markersize=size, markeredgecolor=INK, zorder=3, label="best")
    _scale_objective(axes, view, index)
    for kind, colour in (("pruned", GREY), ("failed", VERMILLION)):
        where = [at[row.number] for row in its if _kind(row) == kind]
        low, across = [0.02] * len(where), axes.get_xaxis_transform()
        axes.plot(where, low, "|", color=colour, markersize=6, transform=across, label=kind if where else None)
    axes.set_xlabel(name, fontsize=FONT_SIZE)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _scale_param(axes: Axes, space: FloatDistribution | IntDistribution) -> None:
    if space.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        room = (space.high / space.low) ** 0.04
        axes.set_xlim(space.low / room, space.high * room)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=isinstance(space, IntDistribution)))
        room = 0.04 * (space.high - space.low)
        axes.set_xlim(space.low - room, space.high + room)


def _folded(name: str) -> str:
    """Break a long name at the space or underscore nearest to its middle."""
    breaks = [place + 1 for place, letter in enumerate(name) if letter in " _."]
    if len(name) <= 11 or not breaks:
        return name
    place = min(breaks, key=lambda place: abs(place - len(name) / 2))
    return f"{name[:place]}\n{name[place:]}"
