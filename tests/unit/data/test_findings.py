from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from flatfix.data.findings import find_copies, findings, near_duplicates, refuse_copies_across_splits
from flatfix.data.index import INDEX_SCHEMA
from flatfix.data.publish import publish
from flatfix.data.splits import SPLITS, SplitRule, tally
from flatfix.data.store import LocalStore
from flatfix.errors import UserError
from tests.helpers.images import MemorySource, records

CLASSES = ("cat", "dog")


def rows(*, split=("train", "val", "test"), label=CLASSES, group=(None,), sha256=(), target=None, num=120):
    """Return rows whose values come in turn from what is given."""
    return [
        {
            "id": f"{number:03d}",
            "split": split[number % len(split)],
            "label": label[number % len(label)],
            "target": target,
            "group": group[number % len(group)],
            "sha256": sha256[number] if number < len(sha256) else f"{number}",
        }
        for number in range(num)
    ]


def table(some):
    return pa.Table.from_pylist(some, schema=pa.schema([INDEX_SCHEMA.field(name) for name in some[0]]))


def found(some, *, classes=CLASSES, keeps_groups=True):
    counts = tally(((row["split"], row["label"]) for row in some), classes)
    return findings(table(some), find_copies(table(some)), counts, classes, keeps_groups=keeps_groups)


def test_pictures_that_all_differ_and_are_many_give_no_finding():
    assert found(rows()) == ()


def test_copies_in_two_splits_are_found_and_refused_with_the_way_out():
    some = rows(sha256=["a", "b", "b", "a", "a"], label=("cat",), num=90)  # 0, 3 and 4 are train, train and val

    assert found(some, classes=("cat",)) == (
        "pictures in more than one split, byte for byte: "
        "2 (000 (train) = 003 (train) = 004 (val), 001 (val) = 002 (test))",
    )
    with pytest.raises(
        UserError, match=r"(?s)byte for byte: 2\..*\n  000 \(train\) = .*\n.*dataset\.allow_duplicates=true"
    ):
        refuse_copies_across_splits(find_copies(table(some)))


def test_copies_within_a_split_are_nothing_that_deceives():
    refuse_copies_across_splits(find_copies(table(rows(sha256=["a", "b", "c", "a"]))))


def test_copies_with_different_labels_are_found():
    assert found(rows(sha256=["a", "b", "c", "a"])) == (
        "pictures with more than one label, byte for byte: 1 (000 (cat) = 003 (dog))",
    )


def test_groups_in_two_splits_are_found_unless_they_are_stratified():
    some = rows(group=("left", "right", None, "left"), num=120)

    assert found(some) == ("groups in more than one split: 2 (left (test, train, val), right (test, train, val))",)
    assert found(some, keeps_groups=False) == ()


@pytest.mark.parametrize(("num", "few"), [(60, False), (54, True)])
def test_a_class_with_fewer_than_ten_pictures_in_a_split_is_found(num, few):
    assert bool(found(rows(num=num))) == few


def test_a_finding_of_many_cases_names_the_first_and_counts_the_rest():
    (finding,) = found(rows(sha256=[f"{number // 6}" for number in range(120)]), keeps_groups=False)[1:]

    assert finding.startswith("pictures with more than one label, byte for byte: 20 (000 (cat) = 001 (dog) = ")
    assert finding.endswith(" and 15 more)")
    assert "= 1 more" in finding


def test_pictures_that_look_alike_are_paired_those_across_splits_first():
    some = rows(num=9, sha256=["a", "b", "c", "d", "e", "f", "a"])
    hashes = np.random.default_rng(0).integers(1, 2**63, (9, 2)).astype(np.uint64)
    hashes[2] = hashes[1]
    hashes[4] = hashes[1] ^ np.uint64([1, 0])
    hashes[6] = hashes[0]  # copies
    hashes[3] = hashes[0] ^ np.uint64([2, 4])
    hashes[7:] = 0  # of one colour

    assert near_duplicates(table(some[:1]), hashes[:1]) == []
    assert near_duplicates(table(some), hashes) == [
        "pairs of pictures that look alike, 2 of them across splits: 5 "
        "(001 (val) ~ 002 (test), 002 (test) ~ 004 (val), "
        "001 (val) ~ 004 (val), 000 (train) ~ 003 (train), 003 (train) ~ 006 (train))"
    ]


def copies_across(num_pictures=60):
    """Return records of which a train and a test picture have the same bytes."""
    some = [replace(r, split=SPLITS[number // 2 % 3]) for number, r in enumerate(records(num_pictures))]
    return [*some[:4], replace(some[4], location=some[0].location), *some[5:]]


def test_copies_across_splits_are_published_only_where_that_is_allowed(tmp_path):
    store = LocalStore(tmp_path / "store")
    words = {"name": "pets", "version": "v1", "rule": SplitRule()}

    with pytest.raises(UserError, match=r"picture-0000 \(train\) = picture-0004 \(test\)"):
        publish(MemorySource(copies_across()), store, **words)
    assert not store.root.exists()

    manifest = publish(MemorySource(copies_across()), store, **words, allow_duplicates=True)
    assert manifest.findings[0] == (
        "pictures in more than one split, byte for byte: 1 (picture-0000 (train) = picture-0004 (test))"
    )
