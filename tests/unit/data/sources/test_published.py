from __future__ import annotations

import hashlib
from dataclasses import replace

from flatfix.data.publish import publish
from flatfix.data.sources.published import PublishedSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version
from tests.helpers.images import MemorySource, records


def test_a_version_of_several_shards_is_read_back_as_it_was_published(tmp_path):
    store = LocalStore(tmp_path)
    some = [
        replace(record, group=f"tire {number // 2}", target=(0.5, 0.5), extension=("png", "jpg")[number % 2])
        for number, record in enumerate(records())
    ]
    publish(MemorySource(some), store, name="pets", version="v1", rule=SplitRule(), shard_bytes=10_000)
    version = open_version(store, "pets", "v1")
    index = {row["id"]: row for row in version.index().to_pylist()}

    source = PublishedSource(version)
    found = source.records()

    assert len(version.manifest.shards) > 2
    assert [record.id for record in found] == list(index)
    given = {record.id: record for record in some}
    for record in found:
        row = index[record.id]
        assert record == replace(given[record.id], location=record.id, split=row["split"])
        assert hashlib.sha256(source.read(record)).hexdigest() == row["sha256"]
