"""Pictures named by a table of comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import ClassVar

from flatfix.data.sources.folder import SPLIT_FOLDERS
from flatfix.data.sources.listing import Faults, ListedSource, Row
from flatfix.errors import UserError, did_you_mean

REQUIRED = ("path", "label")
COLUMNS = (*REQUIRED, "split", "group", "target")
DELIMITERS = ",;\t"


class CsvSource(ListedSource):
    """Read a table in UTF-8 whose first line names the columns `path`, `label` and perhaps these.

    - `split`: train, val (or valid, validation) or test; an empty one is drawn.
    - `group`: pictures of one tire, line or day, see `SplitRule.groups`.
    - `target`: a soft label, as one probability for each class in alphabetical order, with spaces between: `0.25 0.75`.

    Other columns are left alone. Cells are separated by commas, semicolons or tabs, whichever the first line has most,
    and quoted as Python's `csv` does. A message calls a row by the number of the line where it begins.
    """

    kind: ClassVar[str] = "csv"
    row_name: ClassVar[str] = "line {}"

    def rows(self, text: str, faults: Faults) -> Iterator[Row]:
        """Yield the rows whose cells can be read."""
        lines = self._lines(text)
        _, first = next(lines, (1, []))
        header = [name.strip().lower() for name in first]
        self._check(header)
        for number, cells in lines:
            if len(cells) != len(header):
                faults.add(number, f"has {len(cells)} cells, where the first line has {len(header)}")
                continue
            cell = dict(zip(header, map(str.strip, cells), strict=True))
            try:
                split, target = _split(cell.get("split", "")), _target(cell.get("target", ""))
            except ValueError as error:
                faults.add(number, str(error))
            else:
                yield Row(number, cell["path"], cell["label"], split, cell.get("group") or None, target)

    def _lines(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Yield every row that is not blank, and the number of its first line."""
        first_line = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=first_line.count)
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
        begin = 1
        try:
            for cells in reader:
                if cells:
                    yield begin, cells
                begin = reader.line_num + 1
        except csv.Error as error:
            raise self.wrong(f"line {begin}: {error}.") from error

    def _check(self, header: list[str]) -> None:
        """Refuse a header that lacks a column, or that has one nearly: what it holds would be ignored."""
        for name in REQUIRED:
            if name not in header:
                raise self._wrong_header(f"the first line has no column {name}.{did_you_mean(name, header)}")
        for name in header:
            if header.count(name) > 1:
                raise self._wrong_header(f"the first line names the column {name!r} twice.")
            near = did_you_mean(name, set(COLUMNS) - set(header))
            if name not in COLUMNS and near:
                raise self._wrong_header(f"the first line has a column {name}.{near} Rename it, whatever it holds.")

    def _wrong_header(self, what: str) -> UserError:
        return self.wrong(f"{what} Columns: {', '.join(REQUIRED)}; optional: {', '.join(COLUMNS[len(REQUIRED) :])}.")


def _split(cell: str) -> str | None:
    if cell and cell.lower() not in SPLIT_FOLDERS:
        near = did_you_mean(cell.lower(), SPLIT_FOLDERS)
        raise ValueError(f"the split {cell} is not one of {', '.join(SPLIT_FOLDERS)}.{near}")
    return SPLIT_FOLDERS[cell.lower()] if cell else None


def _target(cell: str) -> tuple[float, ...] | None:
    try:
        return tuple(map(float, cell.split())) or None
    except ValueError as error:
        raise ValueError(f"the target {cell} is not numbers with spaces between, such as 0.3 0.7") from error
