from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from flatfix.errors import UserError
from flatfix.evaluation import predictions
from flatfix.evaluation.predictions import Predictions
from flatfix.inference.decision import Decision

CLASSES = ("ok", "Rißbildung", "溝の亀裂", "a/b, c=1")
IDS = ["plain", "ordner/übung", "写真 01", "🛞"]
LABELS = np.array([3, 0, 2, 2])
UNDECIDED = Decision()  # the most probable class, uncalibrated


def table_of_four(dtype: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
    logits = np.random.default_rng(0).normal(size=(4, 4))
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(dtype)


@contextmanager
def disk_full_after(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(path: Path, decision: Decision = UNDECIDED, **changes: Any) -> None:
    arguments = {"ids": IDS, "labels": LABELS, "probabilities": table_of_four(), "classes": CLASSES}
    predictions.write(path, Predictions(**{**arguments, **changes}), decision)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_round_trip_keeps_every_value(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "predictions.parquet"
    probabilities = table_of_four(np.dtype(dtype).type)
    write(path, probabilities=probabilities)

    table = predictions.read(path)

    assert table.ids == IDS
    assert table.classes == CLASSES
    np.testing.assert_array_equal(table.labels, LABELS)
    np.testing.assert_array_equal(table.probabilities, probabilities)
    assert (table.labels.dtype, table.probabilities.dtype) == (np.int64, np.float64)


def test_table_without_rows_makes_the_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write(path, ids=[], labels=LABELS[:0], probabilities=table_of_four()[:0])
    table = predictions.read(path)
    assert (table.ids, table.labels.shape, table.probabilities.shape) == ([], (0,), (0, 4))


def test_columns_speak_for_themselves(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.6, 0.1], [0.25, 0.25, 0.25, 0.25], [0, 0, 0, 1]])
    write(path, probabilities=probabilities)

    table = pq.read_table(path)

    columns = ["id", "label", "prediction", "confidence", "needs_review"]
    assert table.column_names == [*columns, *(f"probability_{name}" for name in CLASSES)]
    assert table["label"].to_pylist() == ["a/b, c=1", "ok", "溝の亀裂", "溝の亀裂"]
    assert table["prediction"].to_pylist() == ["ok", "溝の亀裂", "ok", "a/b, c=1"]
    assert table["confidence"].to_pylist() == pytest.approx([0.7, 0.6, 0.25, 1.0])
    assert table["needs_review"].to_pylist() == [False] * 4
    assert table["probability_Rißbildung"].to_pylist() == [0.1, 0.2, 0.25, 0.0]


def test_predictions_and_probabilities_are_as_decided(
    tmp_path: Path,
) -> None:
    path = tmp_path / "predictions.parquet"
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.2, 0.8]])
    decision = Decision(temperature=2.0, positive=1, threshold=0.3, review=(0.3, 0.4))
    write(path, decision, classes=("ok", "defective"), labels=np.array([0, 0, 1, 1]), probabilities=probabilities)

    table = pq.read_table(path)

    # At temperature 2 the odds are the square roots: 1:3, 1:2, 1:1.22 and 2:1.
    assert table["prediction"].to_pylist() == ["ok", "defective", "defective", "defective"]
    assert table["confidence"].to_pylist() == pytest.approx([0.75, 1 / 3, 1 / (1 + 1.5**0.5), 2 / 3])
    assert table["needs_review"].to_pylist() == [False, True, False, False]
    np.testing.assert_array_equal(predictions.read(path).probabilities, decision.calibrate(probabilities))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file_is_a_user_error_that_names_it(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "predictions.parquet"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"predictions\.parquet: cannot be read as a predictions table"):
        predictions.read(path)


def test_damaged_page_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write(path)
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        predictions.read(path)


@pytest.mark.parametrize("name", ["missing.parquet", "."])
def test_missing_file_or_a_folder_is_a_user_error(tmp_path: Path, name: str) -> None:
    write(tmp_path / "predictions.parquet")
    with pytest.raises(UserError, match="cannot be read"):
        predictions.read(tmp_path / name)


def test_other_parquet_file_is_a_user_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "index.parquet")
    with pytest.raises(UserError, match="not a predictions table"):
        predictions.read(tmp_path / "index.parquet")


def test_other_schema_version_is_a_user_error(tmp_path: Path) -> None:
    header = json.dumps({"schema_version": 99, "classes": []})
    table = pa.table({"id": ["a"]}).replace_schema_metadata({"flatfix.predictions": header})
    pq.write_table(table, tmp_path / "predictions.parquet")
    with pytest.raises(UserError, match="schema_version 99"):
        predictions.read(tmp_path / "predictions.parquet")


def test_diverged_model_is_a_user_error_that_counts_and_names_pictures() -> None:
    probabilities = table_of_four()
    probabilities[1:3, 0] = np.nan
    with pytest.raises(UserError, match=r"2 of 4 pictures \(the first is ordner/übung\)"):
        Predictions(IDS, LABELS, probabilities, CLASSES)


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": IDS[:3]},
        {"labels": LABELS[:3]},
        {"probabilities": table_of_four()[:, :3]},
        {"probabilities": table_of_four()[0]},
        {"labels": np.array([0, 1, 2, 4])},
        {"labels": np.array([0, 1, 2, -1])},
        {"classes": ("ok", "ok", "cut", "crack")},
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    arguments = {"ids": IDS, "labels": LABELS, "probabilities": table_of_four(), "classes": CLASSES}
    with pytest.raises(ValueError, match="^need "):
        Predictions(**{**arguments, **changes})


def test_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write(path)
    earlier = path.read_bytes()
    with disk_full_after(num_bytes=512), pytest.raises(OSError):
        write(path, labels=np.zeros(4, np.int64))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == earlier
