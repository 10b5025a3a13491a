from __future__ import annotations

from pathlib import Path

import pytest

from flatfix.errors import UserError
from flatfix.evaluation import figures, predictions
from flatfix.evaluation.confusion_csv import redraw
from tests.helpers.answers import HOSTILE_NAMES, answers, decision, said

PNG = b"\x89PNG\r\n"


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


def drawn(folder: Path, labels: list[int], predicted: list[int], classes: list[str]) -> bytes:
    path = folder / "expected.png"
    figures.save(figures.confusion_matrix(labels, predicted, classes), path)
    return path.read_bytes()


def test_table_that_an_evaluation_wrote_gives_the_same_figure(tmp_path: Path) -> None:
    classes = HOSTILE_NAMES[::-1]  # not in the order of the alphabet
    predictions.write_csv(tmp_path / "predictions.csv", said(4, classes=classes), decision(4))
    path = redraw(tmp_path / "predictions.csv", tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "confusion_matrix.png"
    model = answers(4, classes=classes)
    assert path.read_bytes() == drawn(tmp_path, model.labels, model.predictions, classes)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("label,prediction\nb,a\na,a\nb,b\n", ["a", "b"]),
        ("\ufeff Prediction ;path; LABEL\r\na;x.jpg;b\r\na;y.jpg;a\r\n\r\nb;z.jpg;b", ["a", "b"]),
        ('prediction\tlabel\n"a"\tb\na\t a \n"b"\tb\n', ["a", "b"]),
        ("label,prediction\n10,9\n9,9\n10,10\n", ["9", "10"]),
        ("label,prediction,probability_b,probability_a\na,b,1,0\nb,b,1,0\na,a,0,1", ["b", "a"]),
        ("label,prediction,probability_b\nb,a,1\na,a,0\nb,b,1", ["a", "b"]),
    ],
    ids=["commas", "semicolons", "tabs", "numbers", "order of the model", "not all of the model"],
)
def test_any_table_with_label_and_prediction_is_read(tmp_path: Path, text: str, classes: list[str]) -> None:
    path = redraw(table(tmp_path, text), tmp_path)
    assert path.read_bytes() == drawn(tmp_path, [1, 0, 1], [0, 0, 1], classes)


def test_class_that_the_model_never_met_has_a_row_too(tmp_path: Path) -> None:
    text = "label,prediction,probability_a,probability_b,probability_c\nb,a,1,0,0\na,a,1,0,0\nb,b,0,1,0\n"
    path = redraw(table(tmp_path, text), tmp_path)
    assert path.read_bytes() == drawn(tmp_path, [1, 0, 1], [0, 0, 1], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column label"),
        ("label,prediction\n", "no rows below the first line"),
        ("label,predictions\na,b\n", "has no column prediction. Did you mean 'predictions'"),
        ("path,label\na,b\n", "has no column prediction"),
        ("label,prediction,Label\na,b,a\n", "names the column label twice"),
        ("label,prediction\na,b\na\n", "line 3 has 1 cells, where the first line has 2"),
        ("label,prediction\na,b\n,b\n", "line 3 has no label"),
        ("label,prediction\na, \n", "line 2 has no prediction"),
        ('label,prediction\n"a,b\n', "line 2: "),
        ("label,prediction\n" + "".join(f"{row}.jpg,a\n" for row in range(2001)), "2,002 different classes"),
    ],
)
def test_table_that_cannot_be_drawn_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(UserError, match=f"^csv={path}: .*{message}"):
        redraw(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.csv", "No such file"),
        (tmp_path, "Is a directory"),
        (table(tmp_path, "label,prediction\nä,ö\n", "latin-1"), "not UTF-8"),
    ):
        with pytest.raises(UserError, match=f"^csv={path}: {message}"):
            redraw(path, tmp_path)
