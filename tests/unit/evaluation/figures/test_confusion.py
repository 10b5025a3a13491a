from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from flatfix.evaluation.figures import confusion_matrix, save


def some_predictions(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, 2000)
    return labels, np.where(rng.random(2000) < 0.8, labels, rng.integers(0, num_classes, 2000))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def names(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def test_cells_hold_counts_and_row_percentages_and_the_title_accuracy_and_n() -> None:
    labels = np.repeat([0, 1], [1000, 2000])
    predictions = np.concatenate([np.repeat([0, 1], [999, 1]), np.repeat([0, 1], [500, 1500])])
    figure = confusion_matrix(labels, predictions, ["ok", "defective"])
    assert texts(figure) == ["999\n100 %", "1\n<1 %", "500\n25 %", "1,500\n75 %"]
    assert figure.get_suptitle() == "Accuracy 83.3 %, n = 3,000"
    assert names(figure) == ["ok", "defective"]


def test_rows_are_true_classes_and_columns_predicted_ones() -> None:
    figure = confusion_matrix(np.array([0, 0, 1]), np.array([1, 1, 1]), ["ok", "defective"])
    assert texts(figure) == ["0", "2\n100 %", "0", "1\n100 %"]
    assert figure.axes[0].get_ylabel() == "True class"
    assert figure.axes[0].get_xlabel() == "Predicted class"


def test_class_without_pictures_has_an_empty_row() -> None:
    figure = confusion_matrix(np.array([0, 1]), np.array([0, 1]), ["a", "b", "c"])
    assert texts(figure)[6:] == ["0", "0", "0"]


@pytest.mark.parametrize(("num_classes", "num_texts", "num_names"), [(2, 4, 2), (10, 100, 10), (100, 0, 100)])
def test_all_classes_are_named_and_cells_written_where_they_can_be_read(
    num_classes: int, num_texts: int, num_names: int
) -> None:
    figure = confusion_matrix(*some_predictions(num_classes), [f"class_{i}" for i in range(num_classes)])
    assert len(texts(figure)) == num_texts
    assert len(names(figure)) == num_names


def test_a_thousand_classes_are_named_in_steps() -> None:
    figure = confusion_matrix(*some_predictions(1000), [str(i) for i in range(1000)])
    assert names(figure)[:3] == ["0", "9", "18"]


@pytest.mark.parametrize("num_classes", [2, 10, 40])
def test_names_neither_overlap_nor_leave_the_file(tmp_path: Path, num_classes: int) -> None:
    classes = [f"{i} sidewall cut that is deeper than 3 mm and longer than {i} mm" for i in range(num_classes)]
    figure = confusion_matrix(*some_predictions(num_classes), classes)
    figure.canvas.draw()
    for labels, start, end in [
        (figure.axes[0].get_yticklabels(), "y0", "y1"),
        (figure.axes[0].get_xticklabels(), "x0", "x1"),
    ]:
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: getattr(box, start))
        for lower, upper in zip(boxes, boxes[1:], strict=False):
            assert getattr(lower, end) <= getattr(upper, start) + 1

    save(figure, tmp_path / "figure.png")
    pixels = np.asarray(Image.open(tmp_path / "figure.png").convert("L"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 255).all()


def test_long_names_of_many_classes_keep_their_beginning_and_end() -> None:
    classes = [f"Plantae Tracheophyta Magnoliopsida Rosales species {i:03d}" for i in range(30)]
    shown = names(confusion_matrix(*some_predictions(30), classes))
    assert shown[7] == "Plantae Tra…species 007"
    assert len(set(shown)) == 30


def test_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid entry"):
        confusion_matrix(np.array([0, 2]), np.array([0, 1]), ["a", "b"])
