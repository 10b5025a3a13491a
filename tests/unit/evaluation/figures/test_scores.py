from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from flatfix.evaluation.figures import save, score_histogram
from flatfix.evaluation.figures.style import BLUE, VERMILLION
from tests.helpers.answers import answers, answers_of


def pictures(figure: Figure, panel: int, colour: str) -> int:
    bars = [bar for container in figure.axes[panel].containers for bar in container]
    return int(sum(bar.get_height() for bar in bars if to_hex(bar.get_facecolor()).upper() == colour))


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_two_classes_have_a_panel_each_with_right_and_wrong_apart() -> None:
    figure = score_histogram(answers_of([1, 1, 1, 0, 0], [0.9, 0.31, 0.1, 0.7, 0.2]))
    assert titles(figure) == ["true class defective: 3 pictures", "true class ok: 2 pictures"]
    assert (pictures(figure, 0, BLUE), pictures(figure, 0, VERMILLION)) == (2, 1)
    assert (pictures(figure, 1, BLUE), pictures(figure, 1, VERMILLION)) == (1, 1)
    assert figure.get_suptitle().replace("\n", " ") == (
        "The threshold 0.300 misses 1 of 3 defective and raises 1 false alarm"
    )
    assert figure.axes[1].get_xlabel() == "probability of defective"


def test_threshold_and_review_band_are_drawn_in_both_panels() -> None:
    figure = score_histogram(answers_of([0, 1], [0.2, 0.8], threshold=0.6, review=(0.5, 0.75)))
    assert legend(figure) == ["right", "wrong", "threshold", "to review"]
    for axes in figure.axes:
        assert list(axes.lines[0].get_xdata()) == [0.6, 0.6]
        assert axes.patches[-1].get_extents().transformed(
            axes.transData.inverted()
        ).intervalx.tolist() == pytest.approx([0.5, 0.75])


def test_without_a_review_band_there_is_none() -> None:
    assert legend(score_histogram(answers_of([0, 1], [0.2, 0.8]))) == ["right", "wrong", "threshold"]


@pytest.mark.parametrize("num_classes", [3, 100])
def test_many_classes_have_a_panel_for_right_and_one_for_wrong(num_classes: int) -> None:
    test = answers(num_classes)
    num_right = int(test.is_right.sum())
    figure = score_histogram(test)
    assert titles(figure) == [f"right: {num_right} pictures", f"wrong: {400 - num_right} pictures"]
    assert pictures(figure, 0, BLUE) == num_right
    assert pictures(figure, 1, VERMILLION) == 400 - num_right
    assert legend(figure) == ["right", "wrong"]


def test_a_model_without_mistakes_draws_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = score_histogram(answers_of([0, 1], [0.0, 1.0]))
        save(figure, tmp_path / "figure.png")
    assert "misses 0 of 1 defective and raises 0 false alarms" in figure.get_suptitle().replace("\n", " ")
