"""The report of one evaluation: everything a run says about how good its model is, in one folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatfix.evaluation import figures, predictions
from flatfix.evaluation.metrics import compute


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found, and where it lies.

    `metrics` has the keys of `flatfix.evaluation.metrics.METRICS`.
    """

    metrics: dict[str, float]
    predictions_path: Path
    figure_paths: tuple[Path, ...]


def report(
    folder: Path,
    *,
    ids: Sequence[str],
    labels: NDArray[np.int64],
    probabilities: NDArray[Any],
    classes: Sequence[str],
    positive: int | None,
) -> Evaluation:
    """Evaluate predictions and write `predictions.parquet`, `confusion_matrix.png` and `metrics.json`.

    `metrics.json` holds the metrics by name; one that is undefined is null there, and nan in the value returned.

    Args:
        folder: where to write; made when missing, files of an earlier report are replaced.
        ids: [N] pictures.
        labels: [N] integers in 0..C-1.
        probabilities: [N, C] floating point; each row sums to 1.
        classes: [C] distinct names, in label order.
        positive: index of `dataset.positive_class` for two classes, None for more.

    Raises:
        UserError: if there are no pictures, `positive` does not fit the number of classes, or the model diverged.
        ValueError: if the arrays do not fit together.
    """
    metrics = compute(labels, probabilities, positive)
    folder.mkdir(parents=True, exist_ok=True)
    predictions_path = folder / "predictions.parquet"
    predictions.write(predictions_path, ids=ids, labels=labels, probabilities=probabilities, classes=classes)
    drawings = {"confusion_matrix": figures.confusion_matrix(labels, probabilities.argmax(axis=1), classes)}
    figure_paths = tuple(folder / f"{name}.png" for name in drawings)
    for figure, path in zip(drawings.values(), figure_paths, strict=True):
        figures.save(figure, path)
    _write_metrics(folder / "metrics.json", metrics)
    return Evaluation(metrics=metrics, predictions_path=predictions_path, figure_paths=figure_paths)


def _write_metrics(path: Path, metrics: dict[str, float]) -> None:
    defined = {name: None if math.isnan(value) else value for name, value in metrics.items()}
    with TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
        partial = Path(scratch, path.name)
        partial.write_text(json.dumps(defined, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
