from __future__ import annotations

import csv
import json
import os
import unicodedata

import pytest

from flatfix.data.sources.annotations import AnnotationsSource
from flatfix.data.sources.csv import CsvSource
from flatfix.data.sources.folder import FolderSource
from flatfix.errors import UserError
from tests.helpers.images import class_folders, colours, encode


class Json:
    """Write rows as annotations; a message calls the first one by 0."""

    source = AnnotationsSource

    @staticmethod
    def write(file, rows):
        data = [{"FilePath": path, "label_value": label} for path, label in rows]
        file.write_text(json.dumps({"annotation": {"data": data}}))

    @staticmethod
    def row(number):
        return f"annotation.data[{number}]"


class Table:
    """Write rows as a table; a message calls the first one by its line, 2."""

    source = CsvSource

    @staticmethod
    def write(file, rows):
        with file.open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows([("path", "label"), *rows])

    @staticmethod
    def row(number):
        return f"line {number + 2}"


@pytest.fixture(params=[Json, Table], ids=["annotations", "csv"])
def form(request):
    return request.param


@pytest.fixture
def root(tmp_path):
    return class_folders(tmp_path / "pictures", num_pictures=3)


@pytest.fixture
def listed(form, root, tmp_path):
    def make(rows):
        file = tmp_path / "listing"
        form.write(file, rows)
        return form.source(file, root)

    return make


GOOD = [(f"{label}/{number:03d}.png", label) for label in ("cat", "dog") for number in range(3)]


def refused(source):
    with pytest.raises(UserError) as error:
        source.records()
    return str(error.value)


def test_a_listing_of_class_folders_gives_the_records_of_the_folders(listed, root):
    source = listed(GOOD)

    assert source.classes == ("cat", "dog")
    assert source.records() == FolderSource(root).records()
    assert [source.read(record) for record in source.records()] == [(root / path).read_bytes() for path, _ in GOOD]


def test_the_file_says_the_class_whatever_the_folder_is_called(listed):
    source = listed([("dog/000.png", "good boy"), *GOOD[:3]])

    assert source.classes == ("cat", "good boy")
    assert [record.label for record in source.records()] == ["good boy", "cat", "cat", "cat"]


def test_building_and_describing_a_source_looks_at_nothing(form):
    source = form.source("/no/such/file", "/no/such/folder")

    assert source.describe() == {"kind": source.kind, "file": "/no/such/file", "root": "/no/such/folder"}


@pytest.mark.parametrize("written", ["cat\\000.png", "./cat/000.png", "dog/../cat/000.png", "cat//000.png"])
def test_a_path_may_be_written_in_other_ways(listed, written):
    assert listed([(written, "cat"), *GOOD[1:]]).records()[0].location == "cat/000.png"


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_a_path_finds_its_file_however_its_accents_are_composed(listed, root, on_disk):
    path = unicodedata.normalize(on_disk, "cat/fêlé.png")
    (root / path).write_bytes(encode(colours()))
    written = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]

    for one in written:
        source = listed([(one, "cat"), *GOOD])
        assert source.records()[0].location == path
        assert source.read(source.records()[0]) == (root / path).read_bytes()
    assert f"{path} is listed again" in refused(listed([*((one, "cat") for one in written), *GOOD]))


def test_links_may_lead_out_of_the_root(listed, root, tmp_path):
    (tmp_path / "elsewhere.png").write_bytes(encode(colours()))
    os.symlink(tmp_path / "elsewhere.png", root / "link.png")
    source = listed([("link.png", "cat"), *GOOD])

    assert source.read(source.records()[0]) == (tmp_path / "elsewhere.png").read_bytes()


def test_one_label_is_one_class_however_it_is_written(listed):
    written = [unicodedata.normalize("NFD", "fêlé"), unicodedata.normalize("NFC", "fêlé"), " fêlé "]
    rows = [(path, label) for (path, _), label in zip(GOOD[:3], written, strict=True)]

    assert listed([*rows, *GOOD[3:]]).classes == ("dog", unicodedata.normalize("NFC", "fêlé"))


def test_files_that_differ_in_the_extension_alone_keep_it_in_the_id(listed, root):
    (root / "cat/000.JPG").write_bytes(encode(colours(), "JPEG"))

    records = listed([("cat/000.JPG", "cat"), *GOOD]).records()

    assert [(record.id, record.extension) for record in records[:3]] == [
        ("cat/000.JPG", "jpg"),
        ("cat/000.png", "png"),
        ("cat/001", "png"),
    ]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (("", "cat"), "the path is empty"),
        (("cat/nothing.png", "cat"), "cat/nothing.png does not exist"),
        (("nowhere/000.png", "cat"), "nowhere/000.png does not exist"),
        (("cat/000.png/000.png", "cat"), "cat/000.png/000.png does not exist"),
        (("../pictures/cat/000.png", "cat"), "../pictures/cat/000.png leads out of dataset.source.root"),
        (("cat/../../x.png", "cat"), "../x.png leads out of dataset.source.root"),
        (("/etc/cat.png", "cat"), "/etc/cat.png is absolute"),
        (("s3://a/b.png", "cat"), "the path is an address, where a key below dataset.source.root is expected"),
        (("cat/notes.txt", "cat"), "cat/notes.txt does not have the extension of a picture"),
        (("cat/noext", "cat"), "cat/noext does not have the extension of a picture"),
        (("cat", "cat"), "cat does not have the extension of a picture"),
        (("folder.png", "cat"), "folder.png does not exist"),
        (("gone.png", "cat"), "gone.png does not exist"),
        (("cat/000.png", ""), "the label is empty"),
        (("cat/000.png", " "), "the label is empty"),
        (("cat/000.png", "a\x07b"), "the label 'a\\x07b' has characters that cannot be printed"),
        (("dog/000.png", "dog"), "dog/000.png is listed again, after {first}"),
        (("dog/000.png", "cat"), "dog/000.png is listed again, as cat instead of dog, after {first}"),
        ((".\\dog\\000.png", "dog"), "dog/000.png is listed again, after {first}"),
    ],
)
def test_a_broken_row_is_named_with_what_is_wrong(form, listed, root, row, fault):
    (root / "cat/notes.txt").write_bytes(b"x")
    (root / "cat/noext").write_bytes(b"x")
    (root / "folder.png").mkdir()
    (root / "gone.png").symlink_to("nowhere")

    message = refused(listed([*GOOD[1:], row]))

    assert message.startswith(f"dataset.source.file={listed([]).file}: ")
    assert f"\n  {form.row(5)}: {fault.format(first=form.row(2))}\n" in message
    assert f"dataset.source.root={root}" in message


def test_faults_of_many_rows_come_together_in_order_and_the_first_twenty_are_named(form, listed):
    rows = [("cat/nothing.png", "cat"), ("cat/000.png", ""), *GOOD[1:], *[(f"{n}.png", "dog") for n in range(30)]]

    message = refused(listed(rows))

    lines = message.splitlines()
    assert lines[0].endswith(": faulty rows: 32, nothing was read:")
    assert lines[1] == f"  {form.row(0)}: cat/nothing.png does not exist"
    assert lines[2] == f"  {form.row(1)}: the label is empty"
    assert lines[3] == f"  {form.row(7)}: 0.png does not exist"
    assert lines[21:] == ["  and 12 more", f"Paths are relative to dataset.source.root={listed(rows).root}."]


@pytest.mark.parametrize(("rows", "found"), [([], "no picture"), (GOOD[:3], "cat")])
def test_a_listing_of_less_than_two_classes_is_refused(listed, rows, found):
    assert refused(listed(rows)).endswith(f"a classifier needs at least two classes, found {found}.")


def test_a_file_or_root_that_cannot_be_read_is_named(form, root, tmp_path):
    (tmp_path / "latin").write_bytes(b"path,label\ncaf\xe9.png,cat\n")

    assert refused(form.source("/no/such", root)) == "dataset.source.file=/no/such: No such file or directory."
    assert refused(form.source(tmp_path, root)) == f"dataset.source.file={tmp_path}: Is a directory."
    assert "latin: not UTF-8 (invalid continuation byte at byte 14)" in refused(form.source(tmp_path / "latin", root))
    assert refused(form.source("/no/such", "/nowhere")) == "dataset.source.root=/nowhere: no such folder."


def test_a_byte_order_mark_does_not_matter(listed):
    source = listed(GOOD)
    source.file.write_bytes(b"\xef\xbb\xbf" + source.file.read_bytes())

    assert len(source.records()) == 6
