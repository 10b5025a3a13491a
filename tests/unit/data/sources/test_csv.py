from __future__ import annotations

import pytest

from flatfix.data.sources.csv import CsvSource
from flatfix.errors import UserError
from tests.helpers.images import class_folders, colours, encode


@pytest.fixture
def table(tmp_path):
    def make(text):
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8", newline="")
        return CsvSource(tmp_path / "labels.csv", class_folders(tmp_path / "pictures", num_pictures=3))

    return make


def refused(source):
    with pytest.raises(UserError) as error:
        source.records()
    return str(error.value)


def test_split_group_and_target_are_read_where_there_are_any(table):
    source = table(
        "path,label,split,group,target\n"
        "cat/000.png,cat,train,tom,1 0\n"
        "cat/001.png,cat,VALID,,0.75 0.25\n"
        "dog/000.png,dog,,rex,.33 .67\n"
        "dog/001.png,dog,test,rex,\n"
    )

    assert [(record.id, record.split, record.group, record.target) for record in source.records()] == [
        ("cat/000", "train", "tom", (1.0, 0.0)),
        ("cat/001", "val", None, (0.75, 0.25)),
        ("dog/000", None, "rex", (0.33, 0.67)),
        ("dog/001", "test", "rex", None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "path;label\ncat/000.png;cat\ndog/000.png;dog\n",
        "path\tlabel\r\ncat/000.png\tcat\r\ndog/000.png\tdog\r\n",
        "Label, PATH\ncat, cat/000.png\n\ndog, dog/000.png",
        'camera,"path",label\n"a, ""b""",cat/000.png,cat\n"two\nlines","dog/000.png","dog"\n',
    ],
)
def test_every_usual_way_to_write_a_table_is_read(table, text):
    records = table(text).records()

    assert [(record.location, record.label) for record in records] == [("cat/000.png", "cat"), ("dog/000.png", "dog")]


def test_a_quoted_path_may_have_the_delimiter(table, tmp_path):
    source = table('path,label\n"a,b.png",cat\ndog/000.png,dog\n')
    (tmp_path / "pictures/a,b.png").write_bytes(encode(colours()))

    assert source.records()[0].location == "a,b.png"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("cat/002.png,cat,", "has 3 cells, where the first line has 4"),
        ("cat/002.png,cat,,,", "has 5 cells, where the first line has 4"),
        ("cat/002.png,cat,training,", "the split training is not one of train, val, valid, validation, test. Did you"),
        ("cat/002.png,cat,,0.5 half", "the target 0.5 half is not numbers with spaces between"),
        ('cat/002.png,cat,,"[0.5, 0.5]"', "the target [0.5, 0.5] is not numbers with spaces between"),
        ("cat/002.png,cat,,1", "the target has 1 numbers, where the labels are 2 classes"),
        ("cat/002.png,cat,,0.2 0.3 0.5", "the target has 3 numbers, where the labels are 2 classes"),
        ("cat/002.png,cat,,1.5 -0.5", "the target has a number outside 0 to 1"),
        ("cat/002.png,cat,,nan 1", "the target has a number outside 0 to 1"),
        ("cat/002.png,cat,,0.5 0.4", "the target has the sum 0.9, where it must be 1"),
        (",cat,,", "the path is empty"),
    ],
)
def test_a_broken_row_is_named_by_the_line_where_it_begins(table, row, fault):
    good = 'path,label,split,target\ncat/000.png,cat,,\n\ndog/000.png,"dog\n",,\n'

    assert f"\n  line 6: {fault}" in refused(table(f"{good}{row}\n"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the first line has no column path."),
        ("cat/000.png,cat\n", "the first line has no column path."),
        ("path,labels\n", "the first line has no column label. Did you mean 'labels'? Columns: path, label; optional:"),
        ("path,label,path\n", "the first line names the column 'path' twice."),
        ("path,label,goup\n", "the first line has a column goup. Did you mean 'group'? Rename it"),
        ('path,label\ncat/000.png,cat\n"dog/000.png,dog\nx', "line 3: unexpected end of data."),
        ('path,label\n"cat"/000.png,cat\n', "line 2: ',' expected after '\"'."),
    ],
)
def test_a_file_of_another_form_is_refused(table, text, fault):
    source = table(text)

    assert f"dataset.source.file={source.file}: {fault}" in refused(source)


def test_a_column_with_another_name_is_left_alone(table):
    text = "path,label,camera,split\ncat/000.png,cat,left,train\ndog/000.png,dog,right,train\n"

    assert len(table(text).records()) == 2


def test_a_class_that_is_lost_with_broken_rows_is_no_fault_of_the_others(table):
    message = refused(table("path,label,target\ncat/000.png,cat,1 0\ndog/999.png,dog,0 1\n"))

    assert "faulty rows: 1," in message
    assert "line 3: dog/999.png does not exist" in message
