from __future__ import annotations

from dataclasses import replace

from flatfix.data.diff import diff
from flatfix.data.publish import publish
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version
from tests.helpers.images import MemorySource, records


def test_every_kind_of_change_is_told_apart(tmp_path):
    store = LocalStore(tmp_path / "store")
    before = [replace(r, split=("train", "val", "test")[number % 3]) for number, r in enumerate(records(60))]
    after = [
        replace(before[0], label="dog"),
        replace(before[1], split="test"),
        replace(before[2], group="tire 1"),
        replace(before[3], target=(0.25, 0.75)),
        replace(before[4], location="retouched"),
        *before[5:59],
        replace(before[59], id="other name"),
    ]
    for version, some in (("v1", before), ("v2", after)):
        publish(MemorySource(some), store, name="pets", version=version, rule=SplitRule())
    old, new = open_version(store, "pets", "v1"), open_version(store, "pets", "v2")

    found = diff(old, new)
    assert found.added == ["other name"]
    assert found.removed == ["picture-0059"]
    assert found.changed == {
        "label": ["picture-0000: cat -> dog"],
        "split": ["picture-0001: val -> test"],
        "group": ["picture-0002: none -> tire 1"],
        "target": ["picture-0003: none -> 0.25 0.75"],
        "sha256": ["picture-0004"],
    }
    assert not any((diff(new, new).added, diff(new, new).removed, *diff(new, new).changed.values()))
