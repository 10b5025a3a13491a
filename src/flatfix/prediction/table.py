"""The table of predictions: rows in, a Parquet or CSV file out, whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from flatfix.errors import UserError
from flatfix.files import replacing

COLUMNS = ("path", "class", "probability", "decision")
SCHEMA = pa.schema(zip(COLUMNS, (pa.string(), pa.string(), pa.float64(), pa.string()), strict=True))
ROWS_PER_GROUP = 65_536


class Row(NamedTuple):
    """Say what is known of one picture, in the order of `COLUMNS`.

    Attributes:
        path: where the picture was found.
        label: the class that the model decides for, or None.
        probability: the calibrated probability of that class, or None.
        decision: the class, or what has to be done instead.
    """

    path: str
    label: str | None
    probability: float | None
    decision: str


Write = Callable[[Sequence[Row]], None]


def check_ending(path: Path) -> None:
    """Refuse a file whose ending says no known form.

    Raises:
        UserError: naming the endings there are.
    """
    if path.suffix.lower() not in _WRITERS:
        raise UserError(f"output={path}: unknown ending {path.suffix!r}. Valid: {', '.join(_WRITERS)}.")


@contextmanager
def writing(path: Path) -> Iterator[Write]:
    """Yield what writes rows to `path`, as Parquet or CSV by its ending; the file appears when the block ends well.

    Raises:
        UserError: when there can be no such file.
    """
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(replacing(path))
            write = stack.enter_context(_WRITERS[path.suffix.lower()](partial))
        except OSError as error:
            raise UserError(f"output={path}: cannot be written ({error.strerror or error}).") from error
        yield write


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    """Gather rows into groups of a size that is quick to read."""
    group: list[Row] = []
    with pq.ParquetWriter(path, SCHEMA) as writer:

        def flush() -> None:
            columns = zip(*group, strict=True)
            writer.write_table(pa.table(dict(zip(COLUMNS, columns, strict=True)), schema=SCHEMA))
            group.clear()

        def write(rows: Sequence[Row]) -> None:
            group.extend(rows)
            if len(group) >= ROWS_PER_GROUP:
                flush()

        yield write
        if group:
            flush()


@contextmanager
def _csv(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        yield writer.writerows


_WRITERS = {".parquet": _parquet, ".csv": _csv}
