from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from flatfix.evaluation.answers import Answers
from flatfix.evaluation.figures import precision_recall, roc, save
from tests.helpers.answers import answers, answers_of


def lines(figure: Figure) -> list[Line2D]:
    return list(figure.axes[0].lines)


def points(line: Line2D) -> np.ndarray:
    return np.column_stack([line.get_xdata(), line.get_ydata()])


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def of_class(test: Answers, index: int) -> tuple[np.ndarray, np.ndarray]:
    return test.labels == index, test.calibrated[:, index]


def test_the_roc_of_two_classes_is_that_of_scikit_learn() -> None:
    test = answers(2)
    false_alarms, recall, _ = roc_curve(*of_class(test, 1), drop_intermediate=False)
    np.testing.assert_allclose(points(lines(roc(test))[1]), np.column_stack([false_alarms, recall]))
    assert roc(test).get_suptitle() == f"AUROC of class 1: {roc_auc_score(*of_class(test, 1)):.3f}"


def test_the_precision_recall_curve_of_two_classes_is_that_of_scikit_learn() -> None:
    test = answers(2)
    precision, recall, _ = precision_recall_curve(*of_class(test, 1))
    np.testing.assert_allclose(points(lines(precision_recall(test))[1]), np.column_stack([recall, precision])[::-1])
    average = average_precision_score(*of_class(test, 1))
    assert precision_recall(test).get_suptitle() == f"Average precision of class 1: {average:.3f}"


def test_equal_scores_make_one_point() -> None:
    test = answers_of([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.9])
    assert points(lines(roc(test))[1]).tolist() == [[0, 0], [0, 0.5], [1, 1]]


def test_the_mark_is_where_the_decision_stands() -> None:
    # At 0.3: of two positives one is found; of three others one is a false alarm.
    test = answers_of([1, 1, 0, 0, 0], [0.9, 0.2, 0.4, 0.1, 0.0])
    assert points(lines(roc(test))[2]).tolist() == [[pytest.approx(1 / 3), 0.5]]
    assert points(lines(precision_recall(test))[2]).tolist() == [[0.5, 0.5]]
    assert roc(test).axes[0].texts[0].get_text() == "threshold 0.300:\n50.0\u00a0% recall,\n33.3\u00a0% false alarms"


def test_a_decision_that_finds_nothing_has_no_precision_to_mark() -> None:
    test = answers_of([1, 0], [0.2, 0.1])
    assert len(lines(precision_recall(test))) == 2
    assert points(lines(roc(test))[2]).tolist() == [[0, 0]]


def test_many_classes_show_each_class_their_mean_and_the_worst_by_name() -> None:
    test = answers(100, num_pictures=2000)
    areas = {index: roc_auc_score(*of_class(test, index)) for index in range(100)}
    worst = sorted(areas, key=lambda index: areas[index])[:4]
    figure = roc(test)
    assert len(lines(figure)) == 1 + 100 + 1  # chance, classes, mean
    assert legend(figure) == [
        "by chance",
        "other classes",
        *(f"{areas[index]:.3f} class {index}" for index in worst),
        "mean over classes",
    ]
    mean = np.mean(list(areas.values()))
    assert figure.get_suptitle().replace("\n", " ") == (
        f"AUROC {mean:.3f} on average over classes; the lowest is class {worst[0]} with {areas[worst[0]]:.3f}"
    )
    assert np.trapezoid(lines(figure)[-1].get_ydata(), lines(figure)[-1].get_xdata()) == pytest.approx(mean, abs=0.003)


def test_the_mean_precision_of_many_classes_has_the_mean_of_their_averages_below_it() -> None:
    test = answers(10, num_pictures=2000)
    mean = np.mean([average_precision_score(*of_class(test, index)) for index in range(10)])
    line = lines(precision_recall(test))[-1]
    assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(mean, abs=0.003)


def test_three_classes_are_all_named() -> None:
    named = legend(roc(answers(3)))[1:-1]
    assert sorted(name.partition(" ")[2] for name in named) == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize("draw", [roc, precision_recall])
@pytest.mark.parametrize("label", [0, 1])
def test_pictures_of_one_class_say_that_there_is_nothing_to_rank(tmp_path: Path, draw: type, label: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(answers_of([label, label], [0.2, 0.8]))
        save(figure, tmp_path / "figure.png")
    assert figure.get_suptitle().replace("\n", " ").endswith("is undefined: all pictures are of one class")


def test_a_class_without_pictures_has_no_curve() -> None:
    test = answers(3, num_pictures=4)
    present = len(set(test.labels.tolist()))
    assert len(lines(roc(test))) == 1 + present + 1
