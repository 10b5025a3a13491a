from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution

from flatfix.evaluation.figures.style import BLUE, ORANGE, save
from flatfix.sweeps.figures import DRAWINGS, draw, left_out
from flatfix.sweeps.view import View
from tests.helpers.studies import SPACE, add, empty, searched

TWO = ("maximize", "minimize")


@pytest.fixture(scope="module")
def view() -> View:
    return View.of(searched(), ["accuracy"])


@pytest.fixture(scope="module")
def both() -> View:
    return View.of(searched(directions=TWO), ["accuracy", "latency_ms"])


def of(study, *objectives: str) -> View:
    return View.of(study, objectives or ("accuracy",))


def grown(num: int, names=("optimizer.lr", "optimizer.weight_decay"), values=lambda n: [0.5 + n / 100], **kwargs):
    """Trials whose parameters grow with their numbers."""
    study = empty(**kwargs)
    for number in range(num):
        params = {
            name: SPACE[name].choices[number % 3]
            if isinstance(SPACE[name], CategoricalDistribution)
            else SPACE[name].low + (SPACE[name].high - SPACE[name].low) * (number + 1) / (num + 1)
            for name in names
        }
        add(study, "complete", values(number), params=params, epochs=3)
    return study


def lines(figure: Figure, panel: int = 0) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [tuple(map(float, point)) for point in zip(*line.get_data(), strict=True)]
        for line in figure.axes[panel].lines
    }


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def test_everything_that_can_be_drawn_is_written_under_its_name(tmp_path):
    paths = draw(grown(4), ["accuracy"], tmp_path / "new")
    assert [path.name for path in paths] == ["history.png", "importances.png", "parallel.png", "slices.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert sorted(tmp_path.glob("new/*")) == sorted(paths)


@pytest.mark.parametrize(
    ("num", "names", "missing"),
    [
        (0, ["optimizer.lr", "model"], {"history", "importances", "parallel", "slices"}),
        (1, ["optimizer.lr", "model"], {"importances", "parallel"}),
        (2, ["optimizer.lr", "model"], {"importances"}),
        (4, ["optimizer.lr", "model"], set()),
        (9, ["optimizer.lr"], {"importances", "parallel"}),
        (4, [], {"importances", "parallel", "slices"}),
        (9, ["model", "dataset.batch_size"], set()),
    ],
)
def test_what_cannot_be_drawn_is_left_out_with_the_reason(num, names, missing):
    found = of(grown(num, names))
    assert set(left_out(found)) - {"curves"} == missing
    for name in DRAWINGS.keys() - left_out(found).keys() - {"pareto"}:
        assert DRAWINGS[name](found).axes


def test_importances_of_parameters_that_make_no_difference_are_left_out():
    found = of(grown(5, values=lambda _: [0.5]))
    assert left_out(found)["importances"] == "no parameter makes a difference"
    assert DRAWINGS["parallel"](found) and DRAWINGS["slices"](found)


def test_parameters_that_some_trials_lack_have_a_place_of_their_own():
    study = empty()
    for number in range(8):
        depth = {"augment.depth": 1 + number % 5} if number % 2 else {}
        params = {"optimizer.lr": 0.001 * (number + 1), **depth}
        add(study, "complete", [number / 10], params=params, reported={1: math.nan, 2: math.inf, 3: 0.1})
    found = of(study)
    assert left_out(found) == {"importances": "fewer than two parameters are in every complete trial"}
    assert "not tried" in texts(DRAWINGS["parallel"](found))
    assert DRAWINGS["curves"](found) and DRAWINGS["slices"](found)


def test_the_history_shows_every_complete_trial_the_best_so_far_and_each_trials_epochs(view):
    figure = DRAWINGS["history"](view)
    drawn = lines(figure)
    assert drawn["complete"] == [(row.number, row.values[0]) for row in view.complete]
    best = [y for _, y in drawn["best so far"]]
    assert best == [*np.maximum.accumulate([y for _, y in drawn["complete"]]), max(best)]
    assert drawn["best so far"][-1][0] == view.rows[-1].number
    heights = {round(bar.get_center()[0]): bar.get_height() for bar in figure.axes[1].patches}
    assert heights == {row.number: row.epochs for row in view.rows}
    assert [text.get_text() for text in figure.axes[1].texts] == ["×", "×"]
    assert figure.get_suptitle() == "Best validation accuracy 0.9277: trial 11"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *("best so far", "complete", "pruned", "failed"),
    ]


def test_the_best_loss_so_far_falls():
    study = grown(4, values=lambda number: [[0.9, 0.5, 0.7, 0.4][number]], directions=("minimize",))
    drawn = lines(DRAWINGS["history"](of(study, "loss")))
    assert [y for _, y in drawn["best so far"]] == [0.9, 0.5, 0.5, 0.4, 0.4]


def test_a_value_far_below_the_others_is_an_arrow_at_the_edge():
    found = of(grown(12, values=lambda number: [0.1 if number == 3 else 0.9 + number / 200]))
    for name in ("history", "slices"):
        axes = DRAWINGS[name](found).axes[0]
        low, _ = axes.get_ylim()
        assert low > 0.5
        (arrow,) = [line for line in axes.lines if line.get_marker() == "v"]
        assert list(arrow.get_ydata()) == [low]


def test_what_spreads_over_decades_has_a_logarithmic_scale_in_plain_numbers(tmp_path):
    values = lambda number: [0.9 - number / 50, 10.0 ** (4 + number / 3)]  # noqa: E731
    found = of(grown(9, values=values, directions=TWO), "accuracy", "num_parameters")
    axes = DRAWINGS["pareto"](found).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    save(axes.figure, tmp_path / "pareto.png")
    assert {"10k", "100k", "1M"} <= {tick.get_text() for tick in axes.get_yticklabels()}


def test_curves_show_where_pruned_trials_ended(view):
    figure = DRAWINGS["curves"](view)
    pruned = [row for row in view.rows if row.state == "pruned"]
    of_them = sum(bool(curve) for curve in view.curves.values())
    assert figure.get_suptitle() == f"{len(pruned)} of {of_them} trials pruned on the way"
    drawn = [
        [tuple(map(float, point)) for point in zip(*line.get_data(), strict=True)] for line in figure.axes[0].lines
    ]
    assert all(curve in drawn for curve in view.curves.values() if curve)
    assert lines(figure)["best"] == view.curves[11]


def test_importances_are_sorted_and_written_beside_their_bars(view):
    figure = DRAWINGS["importances"](view)
    (axes,) = figure.axes
    (shares,) = view.importances
    assert [label.get_text() for label in axes.get_yticklabels()][::-1] == list(shares)
    assert max(bar.get_width() for bar in axes.patches) == max(shares.values())
    assert figure.get_suptitle().startswith("model explains 94 % of the differences")


def test_each_complete_trial_is_a_line_and_the_best_is_marked(view):
    (axes,) = DRAWINGS["parallel"](view).axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) == len(SPACE) + 1]
    assert len(drawn) == len(view.complete)
    (best,) = [line for line in drawn if line.get_color() == ORANGE]
    assert list(best.get_ydata())[-1] == 1  # the best is on top
    assert {"0.0001", "0.03", "0.001", "resnet18", "0.9277"} <= texts(axes.figure)


def test_slices_have_the_scale_and_the_choices_of_their_space(view):
    figure = DRAWINGS["slices"](view)
    panels = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == ["lr", "weight_decay", "label_smoothing", "batch_size", "model", "depth"]
    assert [panels[name].get_xscale() for name in ("lr", "label_smoothing")] == ["log", "linear"]
    assert [tick.get_text() for tick in panels["batch_size"].get_xticklabels()] == ["32", "64", "128"]
    num_points = sum(len(line.get_xdata()) for line in panels["lr"].lines if line.get_label() in ("complete", "best"))
    assert num_points == len(view.complete)
    rug = next(line for line in panels["lr"].lines if line.get_label() == "pruned")
    assert len(rug.get_xdata()) == sum(row.state == "pruned" for row in view.rows)


def test_the_front_is_joined_by_steps_and_the_beaten_are_pale(both):
    figure = DRAWINGS["pareto"](both)
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    front = [tuple(point) for point in zip(*drawn["beaten by none"].get_data(), strict=True)]
    assert front == sorted(front, reverse=True)
    assert [y for _, y in front] == sorted((y for _, y in front), reverse=True)
    assert drawn["beaten by none"].get_drawstyle() == "steps-post"
    assert (drawn["beaten by none"].get_color(), len(drawn["beaten"].get_xdata())) == (BLUE, len(both.complete) - 7)
    assert figure.get_suptitle() == "7 of 22 complete trials beaten by none in both"


def test_two_objectives_have_a_panel_each(both):
    assert "curves" not in left_out(both) and "pareto" not in left_out(both)
    assert len(DRAWINGS["history"](both).axes) == 3
    assert len(DRAWINGS["slices"](both).axes) == 2 * len(SPACE)
    names = [text.get_text() for text in DRAWINGS["importances"](both).legends[0].get_texts()]
    assert names == ["validation accuracy", "ms a picture"]


def test_names_that_look_like_formulas_are_drawn_as_they_stand(tmp_path):
    study = empty()
    space = {"x.$a_b$": CategoricalDistribution(["<b>", "日本", None, True]), "y": FloatDistribution(0, 1)}
    for number in range(4):
        choice = space["x.$a_b$"].choices[number]
        add(study, "complete", [number / 4], params={"x.$a_b$": choice, "y": number / 4}, space=space)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("slices", "parallel"):
            save(DRAWINGS[name](of(study)), tmp_path / f"{name}.png")


def test_a_trial_that_is_not_over_is_neither_complete_nor_failed():
    study = grown(2)
    add(study, "running", params={"optimizer.lr": 0.002}, reported={1: 0.4, 2: 0.5})
    for name in ("history", "curves"):
        names = [text.get_text() for text in DRAWINGS[name](of(study)).legends[0].get_texts()]
        assert "not over" in names and "failed" not in names
