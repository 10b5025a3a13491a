from __future__ import annotations

from dataclasses import replace

import pytest

from flatfix.data.derive import DerivedSource, rule_of
from flatfix.data.diff import diff
from flatfix.data.publish import publish
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version
from flatfix.errors import UserError
from tests.helpers.images import MemorySource, colours, encode, records


@pytest.fixture
def parent(tmp_path):
    store = LocalStore(tmp_path / "store")
    some = [replace(record, target=(0.5, 0.5), group=f"tire {number // 2}") for number, record in enumerate(records())]
    publish(MemorySource(some), store, name="pets", version="v1", rule=SplitRule(seed=3))
    return open_version(store, "pets", "v1")


@pytest.fixture
def table(tmp_path):
    def write(*lines):
        (tmp_path / "fix.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / "fix.csv"

    return write


def derive(parent, file):
    publish(DerivedSource(parent, file), parent.store, name="pets", version="v2", rule=rule_of(parent), parent="v1")
    return open_version(parent.store, "pets", "v2")


def rows_of(version):
    return {row["id"]: row for row in version.index().to_pylist()}


def test_a_corrected_label_changes_that_picture_and_nothing_else(parent, table):
    derived = derive(parent, table("id,label", "picture-0000,dog", "picture-0002,cat"))

    found = diff(parent, derived)
    assert (found.added, found.removed) == ([], [])
    assert {column: what for column, what in found.changed.items() if what} == {
        "label": ["picture-0000: cat -> dog"],
        "target": ["picture-0000: 0.5 0.5 -> 0 1", "picture-0002: 0.5 0.5 -> 1 0"],
    }
    assert derived.manifest.parent == "v1"
    assert derived.manifest.classes == parent.manifest.classes
    assert derived.manifest.source["source.kind"] == "derived"
    assert derived.manifest.source["split.seed"] == 3


def test_pictures_are_removed_and_added_with_their_own_bytes(parent, table, tmp_path):
    (tmp_path / "new").mkdir()
    data = {name: encode(colours(seed=number)) for number, name in enumerate(("plain", "a b"))}
    for name, content in data.items():
        (tmp_path / "new" / f"{name}.PNG").write_bytes(content)
    lines = ["picture-0001,,remove,,,", ",cat,add,new/plain.PNG,,", "mine,dog,ADD,new/a b.PNG,validation,tire 99"]
    derived = derive(parent, table("id,label,change,path,split,group", *lines))

    found = diff(parent, derived)
    assert found.removed == ["picture-0001"]
    assert found.added == ["mine", "new/plain"]
    assert not any(found.changed.values())
    added = rows_of(derived)
    assert [added["new/plain"][name] for name in ("label", "split", "group", "target")] == [
        "cat",
        "train",
        None,
        [1, 0],
    ]
    assert [added["mine"][name] for name in ("label", "split", "group")] == ["dog", "val", "tire 99"]
    for id, name in (("new/plain", "plain"), ("mine", "a b")):
        row = added[id]
        shard = derived.shard(row["shard"]).read_bytes()
        assert shard[row["offset"] : row["offset"] + row["length"]] == data[name]


def test_every_faulty_row_is_named_and_nothing_is_published(parent, table, tmp_path):
    (tmp_path / "here.png").write_bytes(encode(colours()))
    (tmp_path / "picture-0003.png").write_bytes(encode(colours()))
    (tmp_path / "text.txt").write_text("no picture")
    lines = [
        ("picture-9,dog,,,,", "v1 holds no picture picture-9"),
        ("picture-0001,dgo,,,,", "dgo is not one of the classes cat, dog. Did you mean 'dog'?"),
        ("picture-0001,,,,,", "relabel needs a label"),
        ("picture-0001,dog,remove,,,", "remove does not read the label dog"),
        ("picture-0001,dog,,,test,", "relabel does not read the split test"),
        (",dog,add,,,", "add needs a path"),
        (",dog,add,gone.png,,", "gone.png does not exist"),
        (",dog,add,text.txt,,", "text.txt does not have the extension of a picture"),
        (",dog,add,here.png,tset,", "the split tset is not one of train"),
        (",dog,add,picture-0003.png,,", "v1 holds a picture of that id"),
        ("picture-0001,,delete,,,", "the change delete is not one of relabel, remove, add"),
        ("picture-0004,dog", "has 2 cells, where the first line has 6"),
        ("picture-0005,,remove,,,", ""),
        ("picture-0005,cat,,,,", "picture-0005 is named again, after line 14"),
    ]
    file = table("id,label,change,path,split,group", *(line for line, _ in lines))

    with pytest.raises(UserError) as error:
        derive(parent, file)

    assert str(error.value).startswith(f"labels={file}: faulty rows: 13, nothing was read:")
    for number, (_, what) in enumerate(lines, 2):
        assert (f"line {number}: {what}" in str(error.value)) == bool(what)
    assert parent.store.list("datasets/pets/v2") == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["label", "cat"], "the first line has no column id"),
        (["id,lable", "picture-0001,cat"], "a column lable. Did you mean 'label'"),
        (["id,label"], "changes nothing"),
    ],
)
def test_a_table_that_is_none_or_changes_nothing_is_refused(parent, table, lines, message):
    with pytest.raises(UserError, match=rf"labels=.*fix\.csv: .*{message}"):
        DerivedSource(parent, table(*lines)).records()


def test_a_label_that_is_right_already_changes_nothing(tmp_path, table):
    store = LocalStore(tmp_path / "store")
    publish(MemorySource(records()), store, name="pets", version="v1", rule=SplitRule())

    with pytest.raises(UserError, match="changes nothing"):
        DerivedSource(open_version(store, "pets", "v1"), table("id,label", "picture-0001,dog")).records()


def test_a_table_that_is_not_there_is_refused(parent, tmp_path):
    with pytest.raises(UserError, match=r"labels=.*gone\.csv: No such file"):
        DerivedSource(parent, tmp_path / "gone.csv").records()
