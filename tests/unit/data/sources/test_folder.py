from __future__ import annotations

import os
import tracemalloc
import unicodedata
from pathlib import Path

import pytest

from flatfix.data.sources.folder import FolderSource
from flatfix.errors import UserError
from tests.helpers.images import class_folders, colours, encode


def test_class_folders_become_classes_in_alphabetical_order(tmp_path):
    source = FolderSource(class_folders(tmp_path, ("dog", "cat"), num_pictures=2))

    assert source.classes == ("cat", "dog")
    assert [(record.id, record.label, record.split) for record in source.records()] == [
        ("cat/000", "cat", None),
        ("cat/001", "cat", None),
        ("dog/000", "dog", None),
        ("dog/001", "dog", None),
    ]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_above_the_classes_are_splits(tmp_path, val):
    source = FolderSource(class_folders(tmp_path, num_pictures=1, splits=("train", val, "test")))

    assert source.classes == ("cat", "dog")
    assert {(record.id, record.split) for record in source.records()} == {
        (f"{folder}/{label}/000", split)
        for folder, split in (("train", "train"), (val, "val"), ("test", "test"))
        for label in ("cat", "dog")
    }


def test_read_returns_the_bytes_of_the_file(tmp_path):
    source = FolderSource(str(class_folders(tmp_path)))
    record = source.records()[3]

    assert source.read(record) == (tmp_path / "cat/003.png").read_bytes()


def test_only_the_kind_says_what_a_folder_holds(tmp_path):
    assert FolderSource(tmp_path).describe() == {"kind": "folder", "root": str(tmp_path)}


def test_pictures_in_folders_below_a_class_and_behind_links_belong_to_it(tmp_path):
    class_folders(tmp_path / "real", num_pictures=1)
    (tmp_path / "real/cat/more").mkdir()
    (tmp_path / "real/cat/more/x.JPG").write_bytes(encode(colours(), "JPEG"))
    (tmp_path / "root").mkdir()
    for name in ("cat", "dog"):
        os.symlink(tmp_path / "real" / name, tmp_path / "root" / name)

    records = FolderSource(tmp_path / "root").records()

    assert [(record.id, record.extension) for record in records] == [
        ("cat/000", "png"),
        ("cat/more/x", "jpg"),
        ("dog/000", "png"),
    ]


def test_hidden_files_and_files_that_are_no_pictures_are_left_out(tmp_path):
    class_folders(tmp_path, num_pictures=1)
    for name in ("cat/.DS_Store", "cat/.hidden.png", "cat/Thumbs.db", "cat/notes.txt", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "cat/.thumbnails").mkdir()
    (tmp_path / "cat/.thumbnails/y.png").write_bytes(b"x")

    assert [record.id for record in FolderSource(tmp_path).records()] == ["cat/000", "dog/000"]


def test_pictures_that_cannot_be_decoded_are_listed_so_that_publishing_names_them(tmp_path):
    class_folders(tmp_path, num_pictures=1)
    (tmp_path / "cat/phone.HEIC").write_bytes(b"x")

    assert ("cat/phone", "heic") in [(record.id, record.extension) for record in FolderSource(tmp_path).records()]


def test_files_that_differ_in_the_extension_alone_keep_it_in_the_id(tmp_path):
    class_folders(tmp_path, num_pictures=1)
    (tmp_path / "cat/000.jpg").write_bytes(encode(colours(), "JPEG"))

    assert [record.id for record in FolderSource(tmp_path).records()] == ["cat/000.jpg", "cat/000.png", "dog/000"]


def test_a_class_name_is_the_same_however_the_file_system_writes_it(tmp_path):
    class_folders(tmp_path, (unicodedata.normalize("NFD", "fêlé"), "ok"), num_pictures=1)

    assert FolderSource(tmp_path).classes == (unicodedata.normalize("NFC", "fêlé"), "ok")


def test_building_a_source_does_not_touch_the_folder():
    FolderSource("/no/such/folder").describe()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "at least two class folders, found 0"),
        (["cat"], "at least two class folders, found 1"),
        (["train/cat", "train/dog", "flat.class"], "the split folders train lie beside others: flat.class"),
        (["val/cat", "val/dog", "test/cat"], "test, val, but no train folder"),
    ],
)
def test_a_layout_that_is_neither_is_refused(tmp_path, folders, message):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(b"")

    with pytest.raises(UserError, match=message) as error:
        FolderSource(tmp_path).classes  # noqa: B018
    assert f"dataset.source.root={tmp_path}" in str(error.value)


def test_a_missing_root_and_an_empty_class_are_named(tmp_path):
    with pytest.raises(UserError, match="missing: no such folder"):
        FolderSource(tmp_path / "missing").records()
    (class_folders(tmp_path) / "bird").mkdir()
    with pytest.raises(UserError, match="no picture in the class folder bird"):
        FolderSource(tmp_path).records()


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    class_folders(tmp_path, num_pictures=2)
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    assert len(FolderSource(tmp_path).records()) == 4


def test_a_million_pictures_are_listed_in_300_megabytes(tmp_path: Path) -> None:
    num_pictures = 20_000
    for label in ("scratched", "sound"):
        (tmp_path / label).mkdir()
        for number in range(num_pictures // 2):
            (tmp_path / label / f"picture-{number:06d}.jpg").touch()

    tracemalloc.start()
    records = FolderSource(tmp_path).records()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(records) == num_pictures
    assert peak / num_pictures < 300
