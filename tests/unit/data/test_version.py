from __future__ import annotations

import hashlib

import pytest

from flatfix.data.index import INDEX_SCHEMA
from flatfix.data.publish import publish
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import DamagedVersionError, list_versions, open_newest, open_version
from flatfix.errors import UserError
from tests.helpers.images import class_folders


@pytest.fixture
def store(tmp_path):
    store = LocalStore(tmp_path / "store")
    source = FolderSource(class_folders(tmp_path / "pictures"))
    for name, version in (("pets", "v1"), ("pets", "v2"), ("tires", "2026-01")):
        publish(source, store, name=name, version=version, rule=SplitRule())
    return store


def damage(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_the_index_says_where_every_picture_lies_and_what_it_is(store):
    version = open_version(store, "pets", "v1")

    rows = version.index().to_pylist()

    assert version.index().schema.equals(INDEX_SCHEMA)
    assert len(rows) == 20
    for row in rows:
        shard = version.shard(row["shard"]).read_bytes()
        data = shard[row["offset"] : row["offset"] + row["length"]]
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert (row["width"], row["height"]) == (16, 12)
        assert row["id"].startswith(row["label"])


@pytest.mark.parametrize("position", [0, 700, -1])
def test_a_flipped_bit_in_a_shard_is_found_before_it_is_used(store, position):
    version = open_version(store, "pets", "v1")
    damage(store.root / "datasets/pets/v1/shard-00000.tar", position)

    with pytest.raises(DamagedVersionError, match=r"pets/v1/shard-00000\.tar .* is not what was published"):
        version.shard("shard-00000.tar")


def test_a_flipped_bit_in_the_index_is_found_before_it_is_used(store):
    damage(store.root / "datasets/pets/v1/index.parquet", 50)

    with pytest.raises(DamagedVersionError, match=r"index\.parquet"):
        open_version(store, "pets", "v1").index()


def test_a_missing_shard_is_named(store):
    (store.root / "datasets/pets/v1/shard-00000.tar").unlink()

    with pytest.raises(DamagedVersionError, match=r"shard-00000\.tar in file://.* is missing"):
        open_version(store, "pets", "v1").shard("shard-00000.tar")


def test_a_version_that_is_not_held_is_refused_with_those_that_are(store):
    with pytest.raises(UserError) as error:
        open_version(store, "pets", "v3")

    assert "dataset.name=pets dataset.version=v3: not in the store file://" in str(error.value)
    assert "holds pets/v1, pets/v2, tires/2026-01. Did you mean 'pets/v" in str(error.value)


def test_an_empty_store_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no version yet"):
        open_version(LocalStore(tmp_path), "pets", "v1")


def test_versions_are_listed_for_all_datasets_or_one(store):
    assert [(m.name, m.version) for m in list_versions(store)] == [("pets", "v1"), ("pets", "v2"), ("tires", "2026-01")]
    assert [m.version for m in list_versions(store, "tires")] == ["2026-01"]
    assert list_versions(store, "tire") == []


def test_files_without_a_manifest_are_no_version(store):
    (store.root / "datasets/pets/v2/manifest.json").unlink()

    assert [m.version for m in list_versions(store, "pets")] == ["v1"]


def test_a_damaged_manifest_is_named(store):
    (store.root / "datasets/pets/v2/manifest.json").write_bytes(b"{")

    with pytest.raises(UserError, match=r"datasets/pets/v2/manifest\.json in file://.*not a manifest"):
        open_version(store, "pets", "v2")


def test_a_damaged_manifest_hides_no_other_version(store, capsys):
    (store.root / "datasets/pets/v1/manifest.json").write_bytes(b'{"schema_version": 1, "shards": 3}')

    assert [(m.name, m.version) for m in list_versions(store)] == [("pets", "v2"), ("tires", "2026-01")]
    assert "datasets/pets/v1/manifest.json in file://" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"holds pets/v1, pets/v2, tires/2026-01\. Did you mean"):
        open_version(store, "pets", "v3")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", ".hidden", "é"])
def test_a_name_that_cannot_be_a_folder_everywhere_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"dataset\.name="):
        open_version(LocalStore(tmp_path), name, "v1")
    with pytest.raises(UserError, match=r"dataset\.version="):
        open_version(LocalStore(tmp_path), "pets", name)


class CrampedStore(LocalStore):
    """Loses the first files that it fetches before they can be opened, as a cache without room does."""

    def __init__(self, root, num_lost):
        super().__init__(root)
        self.num_lost = num_lost

    def fetch(self, key, sha256):
        path = super().fetch(key, sha256)
        self.num_lost -= key.endswith(".tar")
        return path if self.num_lost < 0 else path.with_suffix(".deleted")


def test_a_shard_that_the_cache_deletes_before_it_is_opened_is_fetched_again(store):
    version = open_version(CrampedStore(store.root, num_lost=2), "pets", "v1")

    with version.open_shard("shard-00000.tar") as shard:
        assert hashlib.sha256(shard.read()).hexdigest() == version.manifest.shards[0].sha256


def test_a_cache_that_has_no_room_for_a_shard_is_too_small(store):
    version = open_version(CrampedStore(store.root, num_lost=100), "pets", "v1")

    with pytest.raises(UserError, match=r"dataset\.cache_gigabytes: too small, shard-00000\.tar"):
        version.open_shard("shard-00000.tar")


def test_the_newest_version_is_the_one_that_was_published_last(store):
    assert open_newest(store, "pets").manifest.version == "v2"
    with pytest.raises(UserError, match=r"dataset\.name=pet: .* holds pets, tires\. Did you mean 'pets'"):
        open_newest(store, "pet")
