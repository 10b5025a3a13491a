from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatfix.errors import UserError
from flatfix.evaluation import predictions
from flatfix.evaluation.metrics import METRICS, compute
from flatfix.evaluation.report import Evaluation, report


def evaluate(folder: Path, **changes: Any) -> Evaluation:
    scores = np.random.default_rng(0).random(50)
    arguments = {
        "ids": [f"picture_{i}" for i in range(50)],
        "labels": (scores > 0.4).astype(np.int64),
        "probabilities": np.column_stack([1 - scores, scores]),
        "classes": ("ok", "defective"),
        "positive": 1,
    }
    return report(folder, **{**arguments, **changes})


def test_report_writes_the_table_the_figure_and_the_metrics(tmp_path: Path) -> None:
    evaluation = evaluate(tmp_path / "new" / "evaluation")
    folder = tmp_path / "new" / "evaluation"
    assert {path.name for path in folder.iterdir()} == {"predictions.parquet", "confusion_matrix.png", "metrics.json"}
    assert evaluation.predictions_path == folder / "predictions.parquet"
    assert evaluation.figure_paths == (folder / "confusion_matrix.png",)
    assert json.loads((folder / "metrics.json").read_text()) == evaluation.metrics
    assert list(evaluation.metrics) == list(METRICS)


def test_metrics_follow_from_the_predictions_table(tmp_path: Path) -> None:
    evaluation = evaluate(tmp_path)
    table = predictions.read(evaluation.predictions_path)
    assert compute(table.labels, table.probabilities, positive=1) == evaluation.metrics


def test_second_report_replaces_the_first(tmp_path: Path) -> None:
    earlier = evaluate(tmp_path, labels=np.ones(50, np.int64))
    later = evaluate(tmp_path)
    assert later.metrics["accuracy"] > earlier.metrics["accuracy"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == later.metrics
    assert len(list(tmp_path.iterdir())) == 3


def test_undefined_metric_is_null_in_the_file(tmp_path: Path) -> None:
    evaluation = evaluate(tmp_path, labels=np.ones(50, np.int64))
    assert np.isnan(evaluation.metrics["auroc"])
    assert json.loads((tmp_path / "metrics.json").read_text())["auroc"] is None


def test_diverged_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="diverged"):
        evaluate(tmp_path, probabilities=np.full((50, 2), np.nan))
    assert not list(tmp_path.iterdir())


def test_evaluation_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        evaluate(tmp_path).metrics = {}  # type: ignore[misc]
