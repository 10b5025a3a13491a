"""The predictions table: what the model said of each picture, as a Parquet file that any tool reads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flatfix.errors import UserError

SCHEMA_VERSION = 1
_METADATA_KEY = b"flatfix.predictions"


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """A predictions table in memory.

    Attributes:
        ids: [N] pictures.
        labels: [N] true classes, as indices into `classes`.
        probabilities: [N, C] floating point.
        classes: [C] names, in label order.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    probabilities: NDArray[Any]
    classes: tuple[str, ...]


def write(
    path: Path,
    *,
    ids: Sequence[str],
    labels: NDArray[np.int64],
    probabilities: NDArray[Any],
    classes: Sequence[str],
) -> None:
    """Write a predictions table; an existing file is replaced whole or not at all.

    Columns: `id`, `label` and `prediction` (names of classes), `confidence` (probability of the prediction) and one
    `probability_<class>` for each class in label order. The schema's metadata keeps the classes. Half precision is
    stored as float32, other floating point as it is.

    Args:
        path: the file, in a folder that exists.
        ids: [N] pictures.
        labels: [N] integers in 0..C-1.
        probabilities: [N, C] floating point.
        classes: [C] distinct names, in label order.

    Raises:
        UserError: if a probability is nan: the model diverged.
        ValueError: if the arrays do not fit together or a class is named twice.
    """
    if not len(ids) == len(labels) == len(probabilities) or probabilities.shape[1:] != (len(classes),):
        raise ValueError(
            f"need probabilities [N, C], N ids, N labels and C classes; got {probabilities.shape}, {len(ids)}, "
            f"{len(labels)} and {len(classes)}"
        )
    if ((labels < 0) | (labels >= len(classes))).any():
        raise ValueError(f"need labels in 0..{len(classes) - 1}, got {labels.min()}..{labels.max()}")
    if len(set(classes)) < len(classes):
        raise ValueError(f"need distinct class names, got {list(classes)}")
    is_nan = np.isnan(probabilities).any(axis=1)
    if is_nan.any():
        raise UserError(
            f"the model predicts nan for {is_nan.sum()} of {len(ids)} pictures (the first is {ids[is_nan.argmax()]}): "
            "its training diverged. Lower optimizer.lr, or set trainer.precision=32"
        )

    stored = probabilities.astype(np.result_type(probabilities, np.float32), copy=False)
    names = np.asarray(classes, dtype=object)
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "label": pa.array(names[labels], pa.string()),
            "prediction": pa.array(names[stored.argmax(axis=1)], pa.string()),
            "confidence": stored.max(axis=1),
            **{_column(name): stored[:, index] for index, name in enumerate(classes)},
        }
    )
    header = json.dumps({"schema_version": SCHEMA_VERSION, "classes": list(classes)})
    with TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
        partial = Path(scratch, path.name)
        pq.write_table(table.replace_schema_metadata({_METADATA_KEY: header}), partial)
        os.replace(partial, path)


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
        probabilities=np.column_stack([table[_column(name)].to_numpy() for name in classes]),
        classes=classes,
    )


def _column(name: str) -> str:
    return f"probability_{name}"
