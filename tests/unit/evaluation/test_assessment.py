from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatfix.errors import UserError
from flatfix.evaluation import predictions
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.assessment import TABLES, Assessment, assess
from flatfix.evaluation.intervals import per_class
from flatfix.evaluation.measures import measure
from flatfix.evaluation.metrics import METRICS
from flatfix.evaluation.predictions import Predictions
from tests.helpers.answers import HOSTILE_NAMES, answers, decision, said
from tests.helpers.images import colours

FIGURES = ("confusion_matrix", "scores", "reliability", "roc", "precision_recall")


def written(folder: Path, num_classes: int = 2, **changes: Any) -> Assessment:
    arguments: dict[str, Any] = {"pictures": None, "card": {}, "title": "tires version 3", "draw": False}
    table = changes.pop("said", said(num_classes))
    return assess(folder, table, decision(num_classes), **{**arguments, **changes})


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Assessment:
    pictures = np.stack([colours(16, 16, seed) for seed in range(400)])
    card = {"Model": {"runtime": "onnxruntime fp32"}}
    return written(tmp_path_factory.mktemp("drawn") / "new", pictures=pictures, card=card, draw=True)


def test_numbers_are_those_of_the_answers_as_decided(drawn: Assessment) -> None:
    measures = measure(answers(2))
    assert drawn.metrics == measures.test
    assert list(drawn.metrics) == list(METRICS)
    assert drawn.intervals == measures.intervals
    assert drawn.calibration_error == measures.calibration_error
    assert drawn.num_pictures == 400


def test_every_file_is_told_and_there_is_no_other(drawn: Assessment) -> None:
    figures = {f"{name}.png" for name in (*FIGURES, "mistakes", "uncertain")}
    assert {path.name for path in drawn.files} == {*TABLES, *figures, "report.html"}
    assert set(drawn.files[0].parent.iterdir()) == set(drawn.files)


def test_without_drawing_there_are_tables_only(tmp_path: Path) -> None:
    assert [path.name for path in written(tmp_path).files] == list(TABLES)
    assert {path.name for path in tmp_path.iterdir()} == set(TABLES)


def test_page_speaks_of_these_pictures_and_of_no_validation_metrics(drawn: Assessment) -> None:
    page = next(path for path in drawn.files if path.name == "report.html").read_text(encoding="utf-8")
    assert "400 pictures, 2 classes" in page
    assert '<th scope="col">Value</th><th scope="col">95 % interval</th></tr>' in page
    assert "measured on these pictures" in page
    assert "onnxruntime fp32" in page
    text = re.sub(r"<[^>]*>", " ", page.partition("</style>")[2])
    for words in ("test picture", "on test", "Validation", "on validation:", "ualified", "Learning"):
        assert words not in text


@pytest.mark.parametrize(("num_classes", "names"), [(2, None), (4, HOSTILE_NAMES)])
def test_both_tables_of_predictions_say_the_same(tmp_path: Path, num_classes: int, names: tuple[str, ...]) -> None:
    table = said(num_classes, classes=names)
    written(tmp_path, num_classes, said=table)
    read, rows = predictions.read(tmp_path / "predictions.parquet"), rows_of(tmp_path / "predictions.csv")
    decided = Answers.of(table, decision(num_classes))
    probability_columns = [f"probability_{name}" for name in table.classes]
    assert list(rows[0]) == ["path", "label", "prediction", "confidence", *probability_columns]
    assert [row["path"] for row in rows] == read.ids == table.ids
    assert [row["label"] for row in rows] == [table.classes[label] for label in read.labels]
    assert [row["prediction"] for row in rows] == [table.classes[label] for label in decided.predictions]
    values = np.array([[float(row[column]) for column in probability_columns] for row in rows])
    np.testing.assert_array_equal(values, read.probabilities)
    assert [float(row["confidence"]) for row in rows] == list(values[np.arange(400), decided.predictions])


def test_classes_are_listed_with_precision_recall_f1_and_support(tmp_path: Path) -> None:
    table = dataclasses.replace(said(2), labels=np.zeros(400, np.int64))
    sure = np.tile([1.0, 0.0, 0.0], (400, 1))
    three = Predictions(table.ids, table.labels, sure, ("ok", 'a "big, one"', "torn"))
    written(tmp_path, 3, said=three)
    rows = rows_of(tmp_path / "class_metrics.csv")
    assert rows[0] == {"class": "ok", "precision": "1.0", "recall": "1.0", "f1": "1.0", "support": "400"}
    assert rows[1] == {"class": 'a "big, one"', "precision": "", "recall": "", "f1": "", "support": "0"}


def test_figures_of_the_classes_are_those_of_per_class(tmp_path: Path) -> None:
    written(tmp_path, 4)
    model = answers(4)
    for row, expected in zip(
        rows_of(tmp_path / "class_metrics.csv"),
        per_class(model.labels, model.predictions, model.classes),
        strict=True,
    ):
        assert row["class"] == expected.name
        assert [float(row[name]) for name in ("precision", "recall", "f1")] == [
            expected.precision,
            expected.recall,
            expected.f1,
        ]


def test_samples_are_the_worst_mistakes_and_right_answers(tmp_path: Path) -> None:
    written(tmp_path)
    samples = json.loads((tmp_path / "sample_predictions.json").read_text(encoding="utf-8"))
    model = answers(2)
    assert [sample["is_right"] for sample in samples] == [False] * 10 + [True] * 10
    assert [sample["path"] for sample in samples[:10]] == [model.ids[row] for row in model.worst_mistakes(10)]
    assert len({sample["path"] for sample in samples}) == 20
    first, row = samples[0], model.worst_mistakes(1)[0]
    assert first["label"] == model.classes[model.labels[row]] != first["prediction"]
    assert first["confidence"] == pytest.approx(model.calibrated[row].max())
    assert first["probability_of_label"] == pytest.approx(model.calibrated[row].min())


@pytest.mark.parametrize(("num_right", "num_wrong", "expected"), [(3, 2, (3, 2)), (2, 40, (2, 18)), (40, 1, (19, 1))])
def test_samples_of_a_kind_that_is_rare_make_room_for_the_other(
    tmp_path: Path, num_right: int, num_wrong: int, expected: tuple[int, int]
) -> None:
    num = num_right + num_wrong
    table = Predictions(
        [str(row) for row in range(num)],
        np.array([0] * num_right + [1] * num_wrong),
        np.tile([0.8, 0.1, 0.1], (num, 1)),
        ("ok", "torn", "dented"),
    )
    written(tmp_path, 3, said=table)
    samples = json.loads((tmp_path / "sample_predictions.json").read_text())
    flags = [sample["is_right"] for sample in samples]
    assert (flags.count(True), flags.count(False)) == expected


def test_numbers_are_written_and_what_is_undefined_is_null(tmp_path: Path, drawn: Assessment) -> None:
    numbers = json.loads((drawn.files[0].parent / "metrics.json").read_text())
    assert numbers == {
        "num_pictures": 400,
        "metrics": drawn.metrics,
        "intervals": {name: list(interval) for name, interval in drawn.intervals.items()},
        "calibration_error": list(drawn.calibration_error),
    }
    one_class = dataclasses.replace(said(2), labels=np.ones(400, np.int64))
    found = written(tmp_path, said=one_class, draw=True)
    assert math.isnan(found.metrics["auroc"])
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert (numbers["metrics"]["auroc"], numbers["intervals"]["auroc"]) == (None, [None, None])


def test_no_pictures_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to evaluate"):
        written(tmp_path, said=said(2, num_pictures=0))
    assert not list(tmp_path.iterdir())
