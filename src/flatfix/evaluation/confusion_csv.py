"""The confusion matrix of any table of true and predicted classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flatfix.errors import UserError, did_you_mean
from flatfix.evaluation import figures
from flatfix.evaluation.predictions import column_of

REQUIRED = ("label", "prediction")
DELIMITERS = ",;\t"
MAX_CLASSES = 2000
"""More classes are no classes, but something that differs from picture to picture."""


def redraw(path: Path, folder: Path) -> Path:
    """Draw the confusion matrix of a table into a folder, and return its path.

    The table is in UTF-8, its first line names columns, `label` and `prediction` among them, and its cells are
    separated by commas, semicolons or tabs, whichever the first line has most. Classes are in the order of the columns
    `probability_<class>` where these name all of them, as in `predictions.csv`; else in that of their numbers, where
    all are numbers, or of the alphabet.

    Raises:
        UserError: naming csv, for a file that cannot be read or is no such table.
    """
    header, pairs = _read(path)
    names = {name for pair in pairs for name in pair}
    if len(names) > MAX_CLASSES:
        raise _wrong(path, f"{len(names):,} different classes in {len(pairs):,} rows. Is the class in these columns?")
    classes = _ordered(names, header)
    index_of = {name: index for index, name in enumerate(classes)}
    labels, predictions = np.array([[index_of[name] for name in pair] for pair in pairs]).T
    written = folder / "confusion_matrix.png"
    figures.save(figures.confusion_matrix(labels, predictions, classes), written)
    return written


def _read(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the names of the columns, and label and prediction of each row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _wrong(path, f"{error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise _wrong(path, f"not UTF-8 ({error.reason} at byte {error.start}).") from error
    delimiter = max(DELIMITERS, key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    pairs = []
    try:
        header = [name.strip() for name in next(reader, [])]
        columns = [_column(path, name, header) for name in REQUIRED]
        for cells in filter(None, reader):
            if len(cells) != len(header):
                counts = f"{len(cells)} cells, where the first line has {len(header)}"
                raise _wrong(path, f"line {reader.line_num} has {counts}.")
            label, prediction = (cells[column].strip() for column in columns)
            if not label or not prediction:
                raise _wrong(path, f"line {reader.line_num} has no {'prediction' if label else 'label'}.")
            pairs.append((label, prediction))
    except csv.Error as error:
        raise _wrong(path, f"line {reader.line_num}: {error}.") from error
    if not pairs:
        raise _wrong(path, "no rows below the first line.")
    return header, pairs


def _column(path: Path, name: str, header: Sequence[str]) -> int:
    names = [each.lower() for each in header]
    if names.count(name) == 1:
        return names.index(name)
    fault = "names the column {} twice." if name in names else "has no column {}."
    raise _wrong(
        path, f"the first line {fault.format(name)}{did_you_mean(name, header)} Needed: {', '.join(REQUIRED)}."
    )


def _ordered(names: set[str], header: Sequence[str]) -> list[str]:
    prefix = column_of("")
    of_model = [column.removeprefix(prefix) for column in header if column.startswith(prefix)]
    if names <= set(of_model):
        return of_model
    if all(name.isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _wrong(path: Path, what: str) -> UserError:
    return UserError(f"csv={path}: {what}")
