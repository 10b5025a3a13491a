"""The page of a sweep: what it found, figures to point at, and every trial, in one file that needs no network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import plotly.graph_objects
import plotly.io
import plotly.offline
from optuna import visualization

import flatfix
from flatfix.evaluation.figures.style import BLUE, INK, ORANGE
from flatfix.files import replacing
from flatfix.sweeps.figures import PALE, left_out
from flatfix.sweeps.summary import Summary, describe, duration, setting, share
from flatfix.sweeps.summary import figure as written
from flatfix.sweeps.table import rows
from flatfix.sweeps.view import View, label, short_names

if TYPE_CHECKING:
    from optuna import Study

_HEIGHT = 380  # pixels
_PIXELS_AN_AXIS = 105  # of parallel coordinates
_TITLES = {
    "history": ("History", "Each point is a complete trial. A line, where there is one objective, is the best so far."),
    "curves": ("Epoch by epoch", "What each trial reported. Pruned trials end early."),
    "importances": (
        "Importances",
        "The share of the differences between the complete trials that each parameter explains (fANOVA). "
        "Of few trials it is a rough guess; a parameter that only some trials have is not judged.",
    ),
    "parallel": ("Parallel coordinates", "Each line is a complete trial: its parameters, and what it reached."),
    "slices": ("Slices", "Each point is a complete trial; the darker, the later."),
    "pareto": ("Pareto front", "Trials that no other beats in both, and the others."),
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure that answers to the pointer.

    Attributes:
        json: its traces and layout, for plotly.
        height: pixels.
        least_width: pixels below which it scrolls.
    """

    json: str
    height: int
    least_width: int


@dataclass(frozen=True, slots=True)
class Section:
    """One kind of figure: `uri` is the drawing for those who run no scripts."""

    name: str
    title: str
    note: str
    uri: str
    plots: list[Plot]


def write(study: Study, objectives: Sequence[str], summary: Summary, figures: Sequence[Path], folder: Path) -> Path:
    """Write `sweep.html` and return its path.

    Args:
        study: with the attributes that `flatfix.sweeps.trials` names.
        objectives: their names, in the order of the study's directions.
        summary: of the study.
        figures: what `flatfix.sweeps.figures.draw` drew of it.
        folder: made when it is missing.
    """
    view = View.of(study, objectives)
    sections = [_section(view, path) for path in figures]
    table = rows(study)
    options = sorted({name for row in table for name in row.params})
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"setting": setting, "written": written, "duration": duration, "describe": describe}
    template = resources.files("flatfix.sweeps").joinpath("page.html.j2").read_text(encoding="utf-8")
    content = environment.from_string(template).render(
        version=flatfix.__version__,
        summary=summary,
        rows=table,
        options=dict(zip(options, short_names(options), strict=True)),
        sections=sections,
        missing={_TITLES[name][0]: why for name, why in left_out(view).items()},
        plotly=plotly.offline.get_plotlyjs() if sections else "",
    )
    with replacing(folder / "sweep.html") as partial:
        partial.write_text(content, encoding="utf-8")
    return folder / "sweep.html"


def _section(view: View, path: Path) -> Section:
    title, note = _TITLES[path.stem]
    uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return Section(path.stem, title, note, uri, [_plot(figure) for figure in _FIGURES[path.stem](view)])


def _plot(figure: Any) -> Plot:
    """Give a figure of Optuna's the type and colours of the page, and take out what the page says already."""
    figure.update_layout(
        title=None,
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        height=figure.layout.height or _HEIGHT,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
    )
    least_width = figure.layout.width or 320
    figure.update_layout(width=None)
    # `to_json` writes "<" so that it ends no script.
    return Plot(plotly.io.to_json(figure, validate=False), figure.layout.height, least_width)


def _history(view: View) -> list[Any]:
    figures = []
    for index, name in enumerate(view.objectives):
        figure = visualization.plot_optimization_history(
            view.study, target=_target(view, index), target_name=label(name)
        )
        figure.data = [trace for trace in figure.data if trace.x]
        points, *best = figure.data
        points.update(name="complete", marker={"color": BLUE, "size": 8}, **_hover(view, points.x))
        for line in best:
            line.update(name="best so far", line={"color": ORANGE, "shape": "hv"}, hoverinfo="skip")
        figure.update_xaxes(title="trial")
        figures.append(figure)
    return figures


def _curves(view: View) -> list[Any]:
    figure = visualization.plot_intermediate_values(view.study)
    number_of = {f"Trial{row.number}": row.number for row in view.rows}
    is_pruned = {row.number: row.state == "pruned" for row in view.rows}
    for trace in figure.data:
        number = number_of[trace.name]
        colour = PALE if is_pruned[number] else BLUE
        trace.update(name=f"trial {number}", line={"color": colour, "width": 1.2}, marker={"size": 4})
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title=label(view.objectives[0]))
    return [figure]


def _importances(view: View) -> list[Any]:
    # Optuna's own function would fit the forest once more.
    figure = plotly.graph_objects.Figure()
    names = view.judged[::-1]
    for objective, shares, colour in zip(view.objectives, view.importances, (BLUE, ORANGE), strict=False):
        widths = [shares.get(name, 0) for name in names]
        figure.add_bar(
            x=widths,
            y=names,
            orientation="h",
            name=label(objective),
            marker={"color": colour},
            text=list(map(share, widths)),
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    figure.update_xaxes(title="share explained", tickformat=".0%")
    figure.update_yaxes(automargin=True)
    figure.update_layout(height=140 + 34 * len(names) * len(figure.data))
    return [figure]


def _parallel(view: View) -> list[Any]:
    figure = visualization.plot_parallel_coordinate(view.study, target_name=label(view.objectives[0]))
    figure.update_layout(height=420, width=_PIXELS_AN_AXIS * (len(view.spaces) + len(view.objectives)))
    return [figure]


def _slices(view: View) -> list[Any]:
    figures = []
    for name in view.spaces:
        for index, objective in enumerate(view.objectives):
            figure = visualization.plot_slice(
                view.study, params=[name], target=_target(view, index), target_name=label(objective)
            )
            figure.data = figure.data[:1]
            (points,) = figure.data
            points.marker.update(showscale=False, size=8)
            points.update(**_hover(view, points.marker.color))
            if figure.layout.xaxis.categoryarray:  # Optuna writes texts with their quotes
                points.x = [text.strip("'\"") for text in points.x]
                figure.update_xaxes(categoryarray=[text.strip("'\"") for text in figure.layout.xaxis.categoryarray])
            figure.update_xaxes(exponentformat="none")  # 0.0001 rather than 100μ
            figure.update_layout(height=300)
            figures.append(figure)
    return figures


def _pareto(view: View) -> list[Any]:
    figure = visualization.plot_pareto_front(view.study, target_names=[label(name) for name in view.objectives])
    for trace, name, colour in zip(figure.data, ("beaten", "beaten by none"), (PALE, BLUE), strict=True):
        numbers = [json.loads(text.replace("<br>", "\n"))["number"] for text in trace.text or ()]
        trace.update(name=name, hovertemplate=None, **_hover(view, numbers))
        trace.marker = {"size": 9, "color": colour}
    return [figure]


_FIGURES: Mapping[str, Callable[[View], list[Any]]] = {
    "history": _history,
    "curves": _curves,
    "importances": _importances,
    "parallel": _parallel,
    "slices": _slices,
    "pareto": _pareto,
}


def _target(view: View, index: int) -> Callable[[Any], float] | None:
    """Return what picks an objective; Optuna knows the direction only where there is one and nothing picks it."""
    return None if len(view.objectives) == 1 else lambda trial: float(trial.values[index])


def _hover(view: View, numbers: Sequence[int]) -> dict[str, Any]:
    """Return what points say of their trials: its number, what it reached, and its parameters."""
    by_number = {row.number: row for row in view.rows}
    texts = []
    for number in numbers:
        row = by_number[number]
        values = [f"{label(name)}: {written(v)}" for name, v in zip(view.objectives, row.values, strict=True)]
        lines = [*values, *(f"{name}: {setting(value)}" for name, value in row.params.items())]
        texts.append("<br>".join([f"<b>trial {number}</b>", *map(html.escape, lines)]))
    return {"text": texts, "hoverinfo": "text"}
