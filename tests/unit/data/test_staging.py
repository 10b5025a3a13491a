from __future__ import annotations

import threading

import pyarrow.parquet as pq

from flatfix.data.manifest import CONTENT
from flatfix.data.staging import CHUNK, stage
from flatfix.data.version import INDEX_NAME
from tests.helpers.images import MemorySource, records


class SlowSource(MemorySource):
    """Answer the first read of each thread only when all readers have asked."""

    num_readers = 5

    def __init__(self, records):
        super().__init__(records)
        self._all_readers = threading.Barrier(self.num_readers)
        self._seen = threading.local()

    def read(self, record):
        if not hasattr(self._seen, "before"):
            self._seen.before = True
            self._all_readers.wait(timeout=60)
        return super().read(record)


def test_as_many_pictures_are_read_at_a_time_as_the_source_says(tmp_path):
    some = records(CHUNK * SlowSource.num_readers, split="train")

    staged = stage(SlowSource(some), some, len(some), tmp_path, 1 << 20)

    assert staged.content["id"].to_pylist() == [record.id for record in some]


def test_the_content_is_that_of_the_index(tmp_path):
    some = records(30, split="train", group="a", target=(0.5, 0.5))

    staged = stage(MemorySource(some), iter(some), len(some), tmp_path, 10_000)

    assert staged.content.equals(pq.read_table(tmp_path / INDEX_NAME).select(CONTENT))
    assert staged.hashes.shape == (30, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX_NAME, *staged.shard_names]
