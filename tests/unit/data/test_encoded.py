from __future__ import annotations

import os
import shutil
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest

from flatfix.data import encoded
from flatfix.data.blobs import Blobs
from flatfix.data.cache import decoded
from flatfix.data.encoded import WINDOW
from flatfix.data.publish import publish
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import DamagedVersionError, open_version
from tests.helpers.images import MemorySource, records


class DistantStore(LocalStore):
    """Copy files into a cache of so many bytes, as a store in S3 does, and count them."""

    def __init__(self, root, cache, limit_bytes=None):
        super().__init__(root)
        self.blobs = Blobs(cache, limit_bytes)
        self.fetched = Counter()

    def fetch(self, key, sha256):
        def download(path):
            self.fetched[key.rpartition("/")[2]] += 1
            shutil.copyfile(self.root / key, path)

        return self.blobs.get(sha256, download)


@pytest.fixture
def store(tmp_path):
    store = LocalStore(tmp_path / "store")
    rule = SplitRule(val_fraction=0, test_fraction=0)
    publish(MemorySource(records(200)), store, name="pets", version="v1", rule=rule, shard_bytes=25_000)
    return store


@pytest.fixture(params=["threads", "processes"])
def workers(request, monkeypatch):
    monkeypatch.setattr(encoded, "PAYS_FOR_PROCESSES", 0 if request.param == "processes" else 1 << 60)


def load(store, tmp_path, gigabytes=0):
    version = open_version(store, "pets", "v1")
    return decoded(version, "train", image_size=16, resize="squash", cache_dir=tmp_path / "cache", gigabytes=gigabytes)


def in_batches(rows, size=7):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def open_files(folder):
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # another thread has closed it meanwhile
            count += os.readlink(f"/proc/self/fd/{number}").startswith(str(folder))
    return count


def test_rows_are_read_as_from_an_array(store, tmp_path):
    pictures, pixels = load(store, tmp_path).inputs, load(store, tmp_path, 1).inputs

    assert len(pictures) == len(pixels) == 200
    assert pictures.shape == pixels.shape == (200, 16, 16, 3)
    for rows in (0, -1, np.int64(7), slice(3, 9), slice(None, None, 3), slice(5, 5), [4, 2, 2], np.array([-1, 0])):
        np.testing.assert_array_equal(pictures[rows], pixels[rows], strict=True)
    with pytest.raises(IndexError):
        pictures[200]


def test_selected_rows_are_those(store, tmp_path):
    examples = load(store, tmp_path)
    rows = np.random.default_rng(0).permutation(200)[:60]
    part = examples.select(rows)

    assert part.ids == part.inputs.ids == [examples.ids[row] for row in rows]
    np.testing.assert_array_equal(part.inputs[:], examples.inputs[rows])


@pytest.mark.usefixtures("workers")
def test_batches_come_in_order_with_the_decoded_pixels(store, tmp_path):
    pictures, pixels = load(store, tmp_path).inputs, load(store, tmp_path, 1).inputs
    for order in (np.arange(200), np.random.default_rng(0).permutation(200), np.zeros(9, int)):
        batches = in_batches(order)
        read = list(pictures.batches(batches))
        assert len(read) == len(batches)
        for rows, batch in zip(batches, read, strict=True):
            np.testing.assert_array_equal(batch, pixels[rows], strict=True)
            batch[:] = 0  # a copy, which may be changed


def test_the_first_batches_come_before_the_last_shards_are_fetched(store, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "num_cores", lambda: 2)
    distant = DistantStore(store.root, tmp_path / "blobs")
    pictures = load(distant, tmp_path).inputs
    num_shards = len(pictures.version.manifest.shards)
    assert num_shards > 3 * WINDOW

    batches = pictures.batches(in_batches(np.arange(200)))
    next(batches)
    assert 0 < sum(name.startswith("shard") for name in distant.fetched) <= WINDOW + 4
    assert len(list(batches)) == 28
    assert distant.fetched == Counter([*(shard.name for shard in pictures.version.manifest.shards), "index.parquet"])


def test_no_more_shards_are_open_than_are_read_and_none_in_the_end(store, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "num_cores", lambda: 2)
    pictures = load(store, tmp_path).inputs
    most = 0
    for _ in pictures.batches(in_batches(np.arange(200), 3)):
        most = max(most, open_files(store.root))
    assert 0 < most <= WINDOW + 5
    assert open_files(store.root) == 0


@pytest.mark.usefixtures("workers")
def test_a_cache_that_holds_a_few_shards_is_enough(store, tmp_path):
    limit = 100_000
    distant = DistantStore(store.root, tmp_path / "blobs", limit)
    pictures, pixels = load(distant, tmp_path).inputs, load(store, tmp_path, 1).inputs
    for _ in range(2):
        distant.fetched.clear()
        read = np.concatenate(list(pictures.batches(in_batches(np.arange(200)))))
        np.testing.assert_array_equal(read, pixels)
        held = [path.stat().st_size for path in (tmp_path / "blobs").glob("[!.]*")]
        assert sum(held) < 2 * limit  # several are fetched at once
    assert len(distant.fetched) > len(pictures.version.manifest.shards) / 2  # they were fetched again


@pytest.mark.usefixtures("workers")
def test_whoever_stops_early_leaves_nothing_behind(store, tmp_path):
    pictures = load(store, tmp_path).inputs
    batches = pictures.batches(in_batches(np.arange(200)))
    next(batches)
    assert open_files(store.root) > 0
    batches.close()
    assert open_files(store.root) == 0


@pytest.mark.usefixtures("workers")
def test_a_shard_that_was_altered_is_an_error_when_it_is_read_and_not_before(store, tmp_path):
    pictures = load(store, tmp_path).inputs
    last = store.root / "datasets/pets/v1" / pictures.version.manifest.shards[-1].name
    last.write_bytes(last.read_bytes()[:-1] + b"!")
    is_whole = pictures.shards < len(pictures.version.manifest.shards) - 1

    assert len(pictures[np.flatnonzero(is_whole)]) == is_whole.sum()
    with pytest.raises(DamagedVersionError, match=rf"{last.name} .* is not what was published"):
        list(pictures.batches(in_batches(np.arange(200))))
    assert open_files(store.root) == 0


def test_a_shard_that_is_missing_is_an_error(store, tmp_path):
    pictures = load(store, tmp_path).inputs
    (store.root / "datasets/pets/v1" / pictures.version.manifest.shards[0].name).unlink()

    with pytest.raises(DamagedVersionError, match=r"shard-00000\.tar .* is missing"):
        pictures[0]
