from __future__ import annotations

import pyarrow.parquet as pq

from flatfix.data.index import INDEX_SCHEMA, PART, IndexWriter, rows


def a_row(number):
    return {
        "id": f"picture {number}",
        "split": "train",
        "label": "ok",
        "target": [0.25, 0.75] if number % 2 else None,
        "group": None if number % 3 else "tire",
        "shard": "shard-00000.tar",
        "offset": 512 * number,
        "length": 9,
        "width": 3,
        "height": 4,
        "sha256": f"{number:064x}",
    }


def test_rows_of_several_parts_are_in_the_file_as_they_were_and_in_parts_as_in_the_file(tmp_path):
    some = [a_row(number) for number in range(2 * PART + 5)]
    with IndexWriter(tmp_path / "index.parquet", ["sha256", "id"]) as writer:
        for row in some:
            writer.add(row)

    file = pq.ParquetFile(tmp_path / "index.parquet")
    assert file.schema_arrow.equals(INDEX_SCHEMA)
    assert file.num_row_groups == len(writer.parts) == 3
    assert file.read().to_pylist() == some
    assert [row for part in writer.parts for row in part.to_pylist()] == [
        {"sha256": row["sha256"], "id": row["id"]} for row in some
    ]


def test_an_index_without_a_row_has_the_columns(tmp_path):
    with IndexWriter(tmp_path / "index.parquet", ["id"]):
        pass

    assert pq.read_table(tmp_path / "index.parquet").equals(INDEX_SCHEMA.empty_table())


def test_rows_are_yielded_in_order_as_the_columns_that_were_asked_for(tmp_path):
    with IndexWriter(tmp_path / "index.parquet", ["id"]) as writer:
        for number in range(PART + 1):
            writer.add(a_row(number))
    table = pq.read_table(tmp_path / "index.parquet")

    found = list(rows(table, ("offset", "id", "target")))

    assert found[1] == (512, "picture 1", [0.25, 0.75])
    assert [offset for offset, _, _ in found] == [512 * number for number in range(PART + 1)]
