from __future__ import annotations

import json

import pytest

from flatfix.data.sources.annotations import AnnotationsSource
from flatfix.errors import UserError
from tests.helpers.images import class_folders

GOOD = [{"FilePath": f"{label}/000.png", "label_value": label} for label in ("cat", "dog")]


@pytest.fixture
def annotated(tmp_path):
    def make(text):
        (tmp_path / "labels.json").write_text(text)
        return AnnotationsSource(tmp_path / "labels.json", class_folders(tmp_path / "pictures", num_pictures=2))

    return make


def of(*entries):
    return json.dumps({"annotation": {"data": [*GOOD, *entries]}})


def refused(source):
    with pytest.raises(UserError) as error:
        source.records()
    return str(error.value)


def test_every_entry_is_a_picture_and_other_keys_are_left_alone(annotated):
    extra = {"FilePath": "cat/001.png", "label_value": "cat", "annotator": "kim", "box": [1, 2, 3, 4]}
    text = json.dumps({"version": 3, "annotation": {"tool": "x", "data": [*GOOD, extra]}})

    records = annotated(text).records()

    assert [(record.id, record.label) for record in records] == [
        ("cat/000", "cat"),
        ("dog/000", "dog"),
        ("cat/001", "cat"),
    ]
    assert all(record.split is record.group is record.target is None for record in records)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"label_value": "cat"}, "has no FilePath."),
        ({"filePath": "cat/001.png", "label_value": "cat"}, "has no FilePath. Did you mean 'filePath'?"),
        ({"FilePath": "cat/001.png", "label": "cat"}, "has no label_value. Did you mean 'label'?"),
        ({"FilePath": "cat/001.png", "label_value": None}, "label_value is null, where a text is expected"),
        ({"FilePath": "cat/001.png", "label_value": 1}, "label_value is 1, where a text is expected"),
        ({"FilePath": "cat/001.png", "label_value": True}, "label_value is true, where a text is expected"),
        ({"FilePath": "cat/001.png", "label_value": ["cat"]}, 'label_value is ["cat"], where a text is expected'),
        ({"FilePath": "cat/001.png", "label_value": {"a": "é"}}, 'label_value is {"a": "é"}, where a text is expected'),
        ({"FilePath": 7, "label_value": "cat"}, "FilePath is 7, where a text is expected"),
        ({"FilePath": "cat/\0.png", "label_value": "cat"}, "cat/\0.png does not exist"),
        ({"FilePath": "cat/001.png", "label_value": "\ud800"}, "the label '\\ud800' has characters"),
        ("cat/001.png", '"cat/001.png" is no row'),
        (None, "null is no row"),
        ("x" * 99, f'"{"x" * 39}... is no row'),
    ],
)
def test_a_broken_entry_is_named_by_its_index(annotated, entry, fault):
    assert f"\n  annotation.data[2]: {fault}" in refused(annotated(of(entry)))


def test_all_faults_of_an_entry_are_named(annotated):
    message = refused(annotated(of({"FilePath": None, "label_value": 3})))

    assert "faulty rows: 1, nothing was read:" in message
    assert "data[2]: FilePath is null" in message
    assert "data[2]: label_value is 3" in message


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not JSON (Expecting value: line 1 column 1 (char 0))"),
        ('{"annotation": {"data": [}', "not JSON (Expecting value: line 1 column 26 (char 25))"),
        ("path,label\n", "not JSON (Expecting value: line 1 column 1 (char 0))"),
        ("[]", "has no annotation.data. Expected {"),
        ("null", "has no annotation.data. Expected {"),
        ('{"annotations": {"data": []}}', "has no annotation.data. Expected {"),
        ('{"annotation": []}', "has no annotation.data. Expected {"),
        ('{"annotation": {"data": {"FilePath": "a.png"}}}', "annotation.data is no list. Expected {"),
        ('{"annotation": {"data": "cat"}}', "annotation.data is no list. Expected {"),
    ],
)
def test_a_file_of_another_form_is_refused(annotated, text, fault):
    source = annotated(text)

    assert f"dataset.source.file={source.file}: {fault}" in refused(source)
