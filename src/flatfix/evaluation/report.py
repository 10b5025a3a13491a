"""The report of one evaluation: everything a run says about how good its model is, in one folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flatfix.evaluation import figures, findings, page, predictions
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.figures.learning import History
from flatfix.evaluation.measures import Interval, Measures, measure
from flatfix.evaluation.page import Drawing, Gallery
from flatfix.evaluation.predictions import Predictions
from flatfix.evaluation.qualification import Bound, Qualification, qualify
from flatfix.evaluation.thumbnails import data_uri, shrink
from flatfix.evaluation.wording import counted
from flatfix.files import replacing
from flatfix.inference.decision import Decision

PAGE = "report.html"
NUM_PICTURES = 24
"""Pictures of a kind that are shown, such as the worst mistakes."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found, and where it lies.

    Attributes:
        metrics: those of test, by the keys of `METRICS`, of the classes as decided.
        intervals: 95 % interval of each of them.
        validation_metrics: likewise of validation.
        calibration_error: expected calibration error on test, before and after calibration.
        qualification: verdict on the validation metrics.
        predictions_path: table of test.
        figure_paths: PNG files.
        report_path: the page.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    validation_metrics: dict[str, float]
    calibration_error: tuple[float, float]
    qualification: Qualification
    predictions_path: Path
    figure_paths: tuple[Path, ...] = ()
    report_path: Path | None = None


def report(
    folder: Path,
    *,
    validation: Predictions,
    test: Predictions,
    decision: Decision,
    pictures: NDArray[np.uint8] | None,
    augmented: NDArray[np.uint8] | None,
    history: History,
    card: Mapping[str, Mapping[str, str]],
    title: str,
    monitor: str = "accuracy",
    bounds: Sequence[Bound] = (),
    draw: bool = True,
) -> Evaluation:
    """Evaluate predictions and write the report into a folder.

    It writes `report.html`, which needs no other file, its figures as PNG, `metrics.json`, and the tables
    `predictions.parquet` (of test) and `validation.parquet`. A figure for which there is nothing to show is left out.

    Args:
        folder: where to write; made when missing, files of an earlier report are replaced.
        validation: what the model said of the pictures that chose its decision.
        test: what it said of those that judge it.
        decision: how it decides.
        pictures: [N, H, W, 3] those of `test` in its order, or None to show none.
        augmented: [K, H, W, 3] one or more training pictures as training saw them, or None to show none.
        history: one row an epoch, see `figures.learning_curves`; may be empty.
        card: what else a reader should know: sections of named texts.
        title: what was evaluated.
        monitor: the metric that chose the checkpoint.
        bounds: what the validation metrics must reach to qualify.
        draw: write `report.html` and the figures, which take a second or two, too.

    Raises:
        UserError: if a split has no pictures, the decision does not fit the number of classes, or the model diverged.
        ValueError: if the arrays do not fit together.
    """
    answers = Answers.of(test, decision)
    measures = measure(answers, Answers.of(validation, decision))
    qualification = qualify(measures.validation, bounds)
    predictions.write(folder / "predictions.parquet", test, decision)
    predictions.write(folder / "validation.parquet", validation, decision)
    write_numbers(folder / "metrics.json", asdict(measures))
    evaluation = Evaluation(
        metrics=measures.test,
        intervals=measures.intervals,
        validation_metrics=measures.validation,
        calibration_error=measures.calibration_error,
        qualification=qualification,
        predictions_path=folder / "predictions.parquet",
    )
    if not draw:
        return evaluation

    figure_paths = write_page(
        folder,
        answers,
        measures,
        pictures=pictures,
        augmented=augmented,
        history=history,
        monitor=monitor,
        qualification=qualification if bounds else None,
        card=card,
        title=title,
    )
    return replace(evaluation, figure_paths=figure_paths, report_path=folder / PAGE)


def write_page(
    folder: Path,
    answers: Answers,
    measures: Measures,
    *,
    pictures: NDArray[np.uint8] | None,
    card: Mapping[str, Mapping[str, str]],
    title: str,
    augmented: NDArray[np.uint8] | None = None,
    history: History = (),
    monitor: str = "accuracy",
    qualification: Qualification | None = None,
) -> tuple[Path, ...]:
    """Write `report.html` and its figures, and return the paths of the figures; arguments are those of `report`."""
    galleries = {} if pictures is None else _galleries(answers, pictures)
    varied = None if augmented is None else shrink(augmented[:NUM_PICTURES])
    drawn = _draw(answers, history, monitor, galleries, varied)
    drawings = {name: _saved(figure, folder / f"{name}.png") for name, figure in drawn.items()}
    content = page.render(
        title=title,
        card=card,
        num_pictures=len(answers.ids),
        classes=answers.classes,
        scored=answers.scored,
        qualification=qualification,
        summary=findings.summary(answers),
        metrics=findings.metric_rows(answers, measures, monitor),
        decision=findings.decision_rows(answers, measures),
        class_rows=findings.class_rows(answers),
        drawings=drawings,
        galleries=galleries,
        augmented=[] if varied is None else [data_uri(picture) for picture in varied],
    )
    with replacing(folder / PAGE) as partial:
        partial.write_text(content, encoding="utf-8")
    return tuple(folder / f"{name}.png" for name, drawing in drawings.items() if drawing)


def write_numbers(path: Path, numbers: Mapping[str, Any]) -> None:
    """Write numbers as JSON, which has no nan: it is null there."""

    def defined(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: defined(each) for key, each in value.items()}
        if isinstance(value, tuple):
            return [defined(each) for each in value]
        return None if math.isnan(value) else value

    with replacing(path) as partial:
        partial.write_text(json.dumps(defined(numbers), indent=2) + "\n", encoding="utf-8")


def read_numbers(path: Path) -> dict[str, Any]:
    """Read what `write_numbers` wrote."""

    def floats(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: floats(each) for key, each in value.items()}
        if isinstance(value, list):
            return tuple(floats(each) for each in value)
        return math.nan if value is None else value

    numbers: dict[str, Any] = floats(json.loads(path.read_text(encoding="utf-8")))
    return numbers


def _galleries(answers: Answers, pictures: NDArray[np.uint8]) -> dict[str, Gallery]:
    mistakes, uncertain = answers.worst_mistakes(NUM_PICTURES), answers.least_certain(NUM_PICTURES)
    num_wrong = int((~answers.is_right).sum())
    titles = {
        "mistakes": (mistakes, f"The worst {len(mistakes)} of {counted(num_wrong, 'mistake')}"),
        "uncertain": (uncertain, f"The {len(uncertain)} least certain of {counted(len(answers.ids), 'picture')}"),
    }
    return {
        name: Gallery.of(answers, rows, shrink(pictures[rows]), title)
        for name, (rows, title) in titles.items()
        if len(rows)
    }


def _draw(
    answers: Answers,
    history: History,
    monitor: str,
    galleries: Mapping[str, Gallery],
    augmented: NDArray[np.uint8] | None,
) -> dict[str, Figure | None]:
    """Return every figure by the name of its file; None where there is nothing to show."""
    caption = f"true class → predicted class, probability of {answers.scored}, id"
    sheets = {
        name: figures.contact_sheet(gallery.thumbnails, gallery.captions, f"{gallery.title}: {caption}")
        for name, gallery in galleries.items()
    }
    if augmented is not None:
        sheets["augmented"] = figures.contact_sheet(augmented, [], "Training pictures, augmented")
    return {
        "confusion_matrix": figures.confusion_matrix(answers.labels, answers.predictions, answers.classes),
        "scores": figures.score_histogram(answers),
        "reliability": figures.reliability(answers),
        "roc": figures.roc(answers),
        "precision_recall": figures.precision_recall(answers),
        "learning_curves": figures.learning_curves(history, monitor) if history else None,
        **{name: sheets.get(name) for name in ("mistakes", "uncertain", "augmented")},
    }


def _saved(figure: Figure | None, path: Path) -> Drawing | None:
    if figure is None:
        path.unlink(missing_ok=True)  # that of an earlier report
        return None
    figures.save(figure, path)
    return Drawing.of(figure, path)
