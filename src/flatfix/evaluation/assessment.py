"""The report on one set of labelled pictures, which judge a model and have chosen nothing of it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatfix.evaluation import predictions
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.intervals import per_class
from flatfix.evaluation.measures import Interval, measure
from flatfix.evaluation.predictions import Predictions
from flatfix.evaluation.report import PAGE, write_numbers, write_page
from flatfix.files import replacing
from flatfix.inference.decision import Decision

TABLES = ("predictions.parquet", "predictions.csv", "class_metrics.csv", "sample_predictions.json", "metrics.json")
NUM_SAMPLES = 20
"""Pictures in `sample_predictions.json`: half of them mistakes, as far as there are so many of a kind."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """What labelled pictures say of a model, and where that is written.

    Attributes:
        metrics: by the keys of `METRICS`, of the classes as decided.
        intervals: 95 % interval of each of them.
        calibration_error: expected calibration error before and after calibration.
        num_pictures: how many pictures judged.
        files: everything that was written.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    calibration_error: tuple[float, float]
    num_pictures: int
    files: tuple[Path, ...]


def assess(
    folder: Path,
    said: Predictions,
    decision: Decision,
    *,
    pictures: NDArray[np.uint8] | None,
    card: Mapping[str, Mapping[str, str]],
    title: str,
    draw: bool = True,
) -> Assessment:
    """Judge predictions and write all about them into a folder.

    It writes the tables `predictions.parquet`, `predictions.csv` and `class_metrics.csv`, some rows of the first as
    `sample_predictions.json`, all numbers as `metrics.json`, and `report.html` with its figures as PNG.

    Args:
        folder: where to write; made when missing, files of an earlier assessment are replaced.
        said: what the model said; the ids are where the pictures are.
        decision: how it decides.
        pictures: [N, H, W, 3] those of `said` in its order, or None to show none.
        card: what else a reader should know: sections of named texts.
        title: what was evaluated.
        draw: write `report.html` and the figures, which take a second or two, too.

    Raises:
        UserError: if there are no pictures, or the decision does not fit the number of classes.
    """
    answers = Answers.of(said, decision)
    measures = measure(answers)
    numbers = {
        "num_pictures": len(answers.ids),
        "metrics": measures.test,
        "intervals": measures.intervals,
        "calibration_error": measures.calibration_error,
    }
    files = [folder / name for name in TABLES]
    parquet, values, classes, samples, metrics = files
    predictions.write(parquet, said, decision)
    predictions.write_csv(values, said, decision)
    _write_classes(classes, answers)
    _write_samples(samples, answers)
    write_numbers(metrics, numbers)
    if draw:
        figure_paths = write_page(folder, answers, measures, pictures=pictures, card=card, title=title)
        files += [folder / PAGE, *figure_paths]
    return Assessment(
        metrics=measures.test,
        intervals=measures.intervals,
        calibration_error=measures.calibration_error,
        num_pictures=len(answers.ids),
        files=tuple(files),
    )


def _write_classes(path: Path, answers: Answers) -> None:
    """Write the figures of each class in label order; what is undefined is an empty cell."""
    rows = per_class(answers.labels, answers.predictions, answers.classes)
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("class", "precision", "recall", "f1", "support"))
        for row in rows:
            ratios = (row.precision, row.recall, row.f1)
            writer.writerow((row.name, *("" if math.isnan(ratio) else ratio for ratio in ratios), row.num))


def _write_samples(path: Path, answers: Answers) -> None:
    """Write the worst mistakes, and right answers from all over the table."""
    right = np.flatnonzero(answers.is_right)
    mistakes = answers.worst_mistakes(NUM_SAMPLES - min(len(right), NUM_SAMPLES // 2))
    places = np.linspace(0, len(right) - 1, min(len(right), NUM_SAMPLES - len(mistakes)))
    samples = [
        {
            "path": answers.ids[row],
            "label": answers.classes[answers.labels[row]],
            "prediction": answers.classes[answers.predictions[row]],
            "confidence": float(answers.calibrated[row, answers.predictions[row]]),
            "probability_of_label": float(answers.calibrated[row, answers.labels[row]]),
            "is_right": bool(answers.is_right[row]),
            "needs_review": bool(answers.needs_review[row]),
        }
        for row in (*mistakes, *right[places.round().astype(int)])
    ]
    with replacing(path) as partial:
        partial.write_text(json.dumps(samples, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
