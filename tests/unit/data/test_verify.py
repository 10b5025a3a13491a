from __future__ import annotations

import json
from dataclasses import replace

import pytest

from flatfix.data.publish import publish
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.verify import verify
from flatfix.errors import UserError
from tests.helpers.images import MemorySource, records


@pytest.fixture
def store(tmp_path):
    store = LocalStore(tmp_path / "store")
    some = [replace(record, target=(0.1, 0.9), group="a") for record in records()]
    publish(MemorySource(some), store, name="pets", version="v1", rule=SplitRule(groups="stratify"), shard_bytes=10_000)
    return store


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_whole_version_has_no_damage(store):
    assert len(store.list("datasets/pets/v1/shard")) > 2
    assert verify(store, "pets", "v1") == []


def test_every_bad_file_is_named(store):
    folder = store.root / "datasets/pets/v1"
    flip(folder / "shard-00001.tar")
    (folder / "shard-00002.tar").unlink()
    flip(folder / "index.parquet")

    first, second, third = verify(store, "pets", "v1")
    assert "datasets/pets/v1/shard-00001.tar" in first and "sha256 differs" in first
    assert "datasets/pets/v1/shard-00002.tar" in second and "is missing" in second
    assert "datasets/pets/v1/index.parquet" in third and "sha256 differs" in third


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data.replace(b'"cat": ', b'"cat": 1', 1)])
def test_a_manifest_that_was_altered_is_damage(store, damage):
    path = store.root / "datasets/pets/v1/manifest.json"
    path.write_bytes(damage(path.read_bytes()))

    (found,) = verify(store, "pets", "v1")
    assert found.startswith("datasets/pets/v1/manifest.json in file://")


@pytest.mark.parametrize(
    "change", [{"digest": "0" * 64}, {"splits": {split: {"cat": 9, "dog": 9} for split in ("train", "val", "test")}}]
)
def test_a_manifest_of_before_it_was_sealed_is_held_to_the_index(store, change):
    path = store.root / "datasets/pets/v1/manifest.json"
    values = json.loads(path.read_bytes())
    del values["sha256"]
    path.write_text(json.dumps(values))
    assert verify(store, "pets", "v1") == []

    path.write_text(json.dumps(values | change))
    assert verify(store, "pets", "v1") == ["manifest.json of pets/v1 does not tell what the index holds."]


def test_a_version_that_is_not_held_is_wrong_usage(store):
    with pytest.raises(UserError, match=r"dataset\.version=v2: not in the store"):
        verify(store, "pets", "v2")
