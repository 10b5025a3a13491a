"""Pictures named by a table of comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
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
        for number, cell in table_rows(text, COLUMNS, REQUIRED, faults, self.wrong):
            try:
                split, target = _split(cell["split"]), _target(cell["target"])
            except ValueError as error:
                faults.add(number, str(error))
            else:
                yield Row(number, cell["path"], cell["label"], split, cell["group"] or None, target)


def table_rows(
    text: str, columns: Sequence[str], required: Sequence[str], faults: Faults, wrong: Callable[[str], UserError]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of the line where each row begins, and its cells: an empty one for a column that is not there.

    Rows of another length than the first line are faults.

    Raises:
        UserError: made by `wrong`, for text that is no table, and for a first line without a required column or with
            one of nearly the name of a column, whose cells would be ignored.
    """
    lines = _lines(text, wrong)
    _, first = next(lines, (1, []))
    header = [name.strip().lower() for name in first]
    if what := _fault(header, columns, required):
        optional = ", ".join(name for name in columns if name not in required)
        raise wrong(f"{what} Columns: {', '.join(required)}{'; optional: ' if optional else ''}{optional}.")
    for number, cells in lines:
        if len(cells) != len(header):
            faults.add(number, f"has {len(cells)} cells, where the first line has {len(header)}")
            continue
        named = dict(zip(header, map(str.strip, cells), strict=True))
        yield number, {name: named.get(name, "") for name in columns}


def _lines(text: str, wrong: Callable[[str], UserError]) -> Iterator[tuple[int, list[str]]]:
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
        raise wrong(f"line {begin}: {error}.") from error


def _fault(header: Sequence[str], columns: Sequence[str], required: Sequence[str]) -> str | None:
    """Return what is wrong with a first line: a column missing, there twice, or nearly there."""
    for name in required:
        if name not in header:
            return f"the first line has no column {name}.{did_you_mean(name, header)}"
    for name in header:
        if header.count(name) > 1:
            return f"the first line names the column {name!r} twice."
        near = did_you_mean(name, set(columns) - set(header))
        if name not in columns and near:
            return f"the first line has a column {name}.{near} Rename it, whatever it holds."
    return None


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
