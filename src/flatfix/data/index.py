"""The table of a version's pictures: written and read in parts, because a row as Python objects takes a kilobyte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

INDEX_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("target", pa.list_(pa.float64())),
        pa.field("group", pa.string()),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)

Row = dict[str, Any]  # by the names of the schema
PART = 8192  # rows that are Python objects at a time, and those of a row group


class IndexWriter:
    """Write rows to a file of `INDEX_SCHEMA`.

    Attributes:
        parts: what was written, `columns` of it: to read the file again takes twice the memory for a while.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.parts: list[pa.Table] = []
        self._columns = list(columns)
        self._file = pq.ParquetWriter(path, INDEX_SCHEMA)
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Append one row, which has a value for each column."""
        self._rows.append(row)
        if len(self._rows) == PART:
            self._write()

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if error is None:
                self._write()

    def _write(self) -> None:
        if self._rows:
            part = pa.Table.from_pylist(self._rows, schema=INDEX_SCHEMA)
            self._file.write_table(part)
            self.parts.append(_compact(part.select(self._columns)))
            self._rows.clear()


def _compact(table: pa.Table) -> pa.Table:
    """Return a copy in one buffer of the C library's: in many of Arrow's own allocator it takes half as much again."""
    (batch,) = table.to_batches()
    buffer = batch.serialize(memory_pool=pa.system_memory_pool())
    return pa.table(pa.ipc.read_record_batch(buffer, batch.schema))


def rows(index: pa.Table, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of these columns, a row at a time."""
    for batch in index.select(columns).to_batches(max_chunksize=PART):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
