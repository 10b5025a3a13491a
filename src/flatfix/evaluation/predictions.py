"""The predictions table: what the model said of each picture, as a Parquet file that any tool reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flatfix.errors import UserError
from flatfix.files import replacing
from flatfix.inference.decision import Decision

SCHEMA_VERSION = 1
_METADATA_KEY = b"flatfix.predictions"


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a model said of pictures.

    Attributes:
        ids: [N] pictures.
        labels: [N] true classes, as indices into `classes`.
        probabilities: [N, C] floating point, as the model gave them; of a table that was read, calibrated.
        classes: [C] distinct names, in label order.

    Raises:
        UserError: if a probability is nan: the model diverged.
        ValueError: if the arrays do not fit together or a class is named twice.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    probabilities: NDArray[Any]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        num_ids, num_labels, num_classes = len(self.ids), len(self.labels), len(self.classes)
        if not num_ids == num_labels == len(self.probabilities) or self.probabilities.shape[1:] != (num_classes,):
            raise ValueError(
                f"need probabilities [N, C], N ids, N labels and C classes; got {self.probabilities.shape}, {num_ids}, "
                f"{num_labels} and {num_classes}"
            )
        if ((self.labels < 0) | (self.labels >= num_classes)).any():
            raise ValueError(f"need labels in 0..{num_classes - 1}, got {self.labels.min()}..{self.labels.max()}")
        if len(set(self.classes)) < num_classes:
            raise ValueError(f"need distinct class names, got {list(self.classes)}")
        is_nan = np.isnan(self.probabilities).any(axis=1)
        if is_nan.any():
            raise UserError(
                f"the model predicts nan for {is_nan.sum()} of {num_ids} pictures (the first is "
                f"{self.ids[is_nan.argmax()]}): its training diverged. Lower optimizer.lr, or set trainer.precision=32"
            )


def write(path: Path, table: Predictions, decision: Decision) -> None:
    """Write a predictions table; an existing file is replaced whole or not at all.

    Columns: `id`; `label` and `prediction` (names of classes); `confidence`, the probability of the prediction;
    `needs_review`; and one `probability_<class>` for each class in label order. Probabilities are calibrated: they are
    what the decision was made on. The schema's metadata keeps the classes and the decision.

    Args:
        path: the file, in a folder that exists or can be made.
        table: what the model said.
        decision: what makes predictions of it.
    """
    header = json.dumps(
        {"schema_version": SCHEMA_VERSION, "classes": list(table.classes), "decision": decision.to_dict()}
    )
    columns = _columns(table, decision).replace_schema_metadata({_METADATA_KEY: header})
    with replacing(path) as partial:
        pq.write_table(columns, partial)


def write_csv(path: Path, table: Predictions, decision: Decision) -> None:
    """Write a predictions table as comma-separated values, for people and spreadsheets; arguments as `write`.

    Columns: `path`, which is the id; `label`, `prediction`, `confidence` and `probability_<class>` as `write` has them.
    """
    columns = _columns(table, decision).drop_columns("needs_review").rename_columns({"id": "path"})
    with replacing(path) as partial:
        pa_csv.write_csv(columns, partial)


def read(path: Path) -> Predictions:
    """Read a predictions table.

    Raises:
        UserError: if the file is missing, damaged, not a predictions table, or of another schema version.
    """
    try:
        # Not pq.read_table, which makes one table of all that lies in a folder.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as a predictions table ({error}). Evaluate the model again") from error
    header = (table.schema.metadata or {}).get(_METADATA_KEY)
    if header is None:
        raise UserError(f"{path}: a Parquet file, but not a predictions table that Flatfix wrote")
    metadata = json.loads(header)
    if metadata["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{path}: written with schema_version {metadata['schema_version']}, this Flatfix reads {SCHEMA_VERSION}. "
            "Read it with the version that wrote it, or evaluate the model again"
        )
    classes = tuple(metadata["classes"])
    index_of = {name: index for index, name in enumerate(classes)}
    return Predictions(
        ids=table["id"].to_pylist(),
        labels=np.array([index_of[name] for name in table["label"].to_pylist()], dtype=np.int64),
        probabilities=np.column_stack([table[column_of(name)].to_numpy() for name in classes]),
        classes=classes,
    )


def _columns(table: Predictions, decision: Decision) -> pa.Table:
    calibrated = decision.calibrate(table.probabilities)
    predictions = decision.predict(calibrated)
    names = np.asarray(table.classes, dtype=object)
    return pa.table(
        {
            "id": pa.array(table.ids, pa.string()),
            "label": pa.array(names[table.labels], pa.string()),
            "prediction": pa.array(names[predictions], pa.string()),
            "confidence": np.take_along_axis(calibrated, predictions[:, None], axis=1)[:, 0],
            "needs_review": decision.needs_review(calibrated),
            **{column_of(name): calibrated[:, index] for index, name in enumerate(table.classes)},
        }
    )


def column_of(name: str) -> str:
    """Return the column that holds the probabilities of a class."""
    return f"probability_{name}"
