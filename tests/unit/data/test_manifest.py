from __future__ import annotations

import json
import random
from dataclasses import replace

import pyarrow as pa
import pytest

from flatfix.data.index import INDEX_SCHEMA
from flatfix.data.manifest import CONTENT, Manifest, Shard
from flatfix.data.manifest import digest as digest_of
from flatfix.errors import UserError

MANIFEST = Manifest(
    name="tires",
    version="v1",
    digest="ab" * 32,
    classes=("ok", "défectueux"),
    splits={"train": {"ok": 3, "défectueux": 2}, "val": {"ok": 1, "défectueux": 0}, "test": {"ok": 0, "défectueux": 1}},
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    source={"source.kind": "folder", "split.val_fraction": 0.15, "on_bad_image": "error"},
    created="2026-01-02T03:04:05+00:00",
    shards=(Shard("shard-00000.tar", 10240, "cd" * 32),),
    index_sha256="ef" * 32,
    findings=("skipped a.png: the file is empty",),
)

CONTENTS = [
    dict(
        zip(
            CONTENT,
            (f"p{n}", "train", "ok", (0.25, 0.75) if n % 2 else None, "mono" if n % 3 else None, f"{n:064x}"),
            strict=True,
        )
    )
    for n in range(9)
]


def digest(classes, contents):
    schema = pa.schema([INDEX_SCHEMA.field(name) for name in CONTENT])
    return digest_of(classes, pa.Table.from_pylist(contents, schema=schema))


def test_a_manifest_comes_back_from_json_as_it_was():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_num_counts_a_split():
    assert [MANIFEST.num(split) for split in ("train", "val", "test")] == [5, 1, 1]


def test_a_manifest_of_another_schema_version_is_refused():
    data = replace(MANIFEST, schema_version=99).to_json()

    with pytest.raises(UserError, match="schema version 99.*reads 1"):
        Manifest.from_json(data)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"name": "tires"}', b"\xff\xfe", b'{"schema_version": 1}'])
def test_something_else_than_a_manifest_is_refused(data):
    with pytest.raises(UserError, match="not a manifest"):
        Manifest.from_json(data)


def test_the_manifest_is_json_that_people_can_read():
    assert json.loads(MANIFEST.to_json())["splits"]["train"] == {"ok": 3, "défectueux": 2}
    assert "défectueux".encode() in MANIFEST.to_json()


def test_the_digest_does_not_depend_on_the_order_of_the_pictures():
    shuffled = random.Random(0).sample(CONTENTS, len(CONTENTS))

    assert digest(("ok", "bad"), CONTENTS) == digest(("ok", "bad"), shuffled)


def test_the_digest_does_not_depend_on_the_parts_of_the_index():
    many = [CONTENTS[number % 9] | {"id": f"p{number * 7919 % 1000}"} for number in range(1000)]
    schema = pa.schema([INDEX_SCHEMA.field(name) for name in CONTENT])
    parts = [pa.Table.from_pylist(many[start : start + 300], schema=schema) for start in range(0, 1000, 300)]

    assert digest_of(("ok", "bad"), pa.concat_tables(parts)) == digest(("ok", "bad"), many)


def test_the_digest_is_the_same_in_every_release():
    assert digest(("ok", "bad"), CONTENTS) == "a9b675232da4a763d36818c8babf0603b505b675aa0d264d668d757ad6ea36e6"


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"split": "val"},
        {"label": "bad"},
        {"target": (0.5, 0.5)},
        {"target": None},
        {"group": None},
        {"group": "poly"},
        {"sha256": "f" * 64},
    ],
)
def test_the_digest_differs_for_any_change_of_a_picture(change):
    changed = [CONTENTS[0], CONTENTS[1] | change, *CONTENTS[2:]]

    assert digest(("ok", "bad"), changed) != digest(("ok", "bad"), CONTENTS)


def test_the_digest_differs_for_another_order_or_number_of_classes_and_for_a_missing_picture():
    digests = {
        digest(("ok", "bad"), CONTENTS),
        digest(("bad", "ok"), CONTENTS),
        digest(("ok", "bad", "worse"), CONTENTS),
        digest(("ok", "bad"), CONTENTS[1:]),
    }

    assert len(digests) == 4


@pytest.mark.parametrize("change", [{"classes": 3}, {"shards": [{"name": "a"}]}, {"surprise": 1}])
def test_a_manifest_with_a_part_of_another_form_is_refused(change):
    values = json.loads(MANIFEST.to_json()) | change
    del values["sha256"]

    with pytest.raises(UserError, match="not a manifest"):
        Manifest.from_json(json.dumps(values).encode())


def test_a_flipped_bit_anywhere_in_a_manifest_is_found_or_changes_nothing():
    data = MANIFEST.to_json()
    num_found = 0
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1
        try:
            assert Manifest.from_json(bytes(altered)) == MANIFEST
        except UserError:
            num_found += 1

    assert num_found > 0.8 * len(data) - data.count(b" ")


def test_a_manifest_without_a_sha256_is_read():
    values = json.loads(MANIFEST.to_json())
    del values["sha256"]

    assert Manifest.from_json(json.dumps(values).encode()) == MANIFEST
