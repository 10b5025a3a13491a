from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flatfix.errors import UserError
from flatfix.prediction import table
from flatfix.prediction.table import Row, check_ending, writing

ROWS = [
    Row("a.png", "ok", 0.1 + 0.2, "ok"),
    Row('b, "quoted"\nname é.png', "a class, with comma", 1 / 3, "review"),
    Row("c.png", None, None, "unreadable"),
]


def test_parquet_and_csv_hold_the_same_rows_to_the_last_digit(tmp_path: Path) -> None:
    for name in ("out.parquet", "out.csv"):
        with writing(tmp_path / name) as write:
            write(ROWS[:1])
            write(ROWS[1:])
    read = pq.read_table(tmp_path / "out.parquet")
    assert read.column_names == ["path", "class", "probability", "decision"]
    assert [Row(*row.values()) for row in read.to_pylist()] == ROWS
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == read.column_names
    assert [Row(path, label or None, float(p) if p else None, decision) for path, label, p, decision in rows] == ROWS


def test_parquet_gathers_rows_into_groups_that_do_not_follow_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "ROWS_PER_GROUP", 100)
    rows = [Row(f"{number}.png", "ok", 0.5, "ok") for number in range(250)]
    with writing(tmp_path / "out.parquet") as write:
        for start in range(0, 250, 20):
            write(rows[start : start + 20])
    file = pq.ParquetFile(tmp_path / "out.parquet")
    groups = file.metadata
    assert [groups.row_group(index).num_rows for index in range(groups.num_row_groups)] == [100, 100, 50]
    assert file.read()["path"].to_pylist() == [row.path for row in rows]


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "OUT.CSV"])
def test_a_failure_leaves_the_file_that_was_there_and_no_other(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"of yesterday")
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / name) as write:
        write(ROWS)
        raise KeyboardInterrupt
    assert (tmp_path / name).read_bytes() == b"of yesterday"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_a_file_that_cannot_be_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=rf"output=.*/file/{name}: cannot be written \("),
        writing(tmp_path / "file" / name),
    ):
        raise AssertionError("the block must not begin")


@pytest.mark.parametrize("name", ["out.json", "out", "out.csv.gz", ".csv"])
def test_another_ending_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(UserError, match=rf"output={name}: .*Valid: \.parquet, \.csv"):
        check_ending(Path(name))
