from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from flatfix.data.labelled import find_labelled
from flatfix.errors import UserError
from tests.helpers.images import class_folders


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files whose content is their own path, in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    for name in ("ok/b.png", "ok/deep/a.JPG", "defective/1.tiff", ".hidden/x.png", "above.png", "ok/notes.txt"):
        file = tmp_path / "new" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    (tmp_path / "new/empty").mkdir()
    return tmp_path


def table(folder: Path, text: str, encoding: str = "utf-8") -> str:
    (folder / "new/labels.csv").write_text(text, encoding=encoding)
    return "new/labels.csv"


def test_the_folders_are_the_classes_of_all_visible_pictures_in_them(folder: Path) -> None:
    found = find_labelled("new")
    assert found.files.paths == ["new/defective/1.tiff", "new/ok/b.png", "new/ok/deep/a.JPG"]
    assert found.labels == ["defective", "ok", "ok"]
    assert [found.files.read(path) for path in found.files.paths] == [
        b"defective/1.tiff",
        b"ok/b.png",
        b"ok/deep/a.JPG",
    ]


def test_one_class_is_enough(tmp_path: Path) -> None:
    class_folders(tmp_path, classes=["ok"], num_pictures=2)
    assert find_labelled(str(tmp_path)).labels == ["ok", "ok"]


def test_a_table_keeps_its_order_and_names_pictures_anywhere(folder: Path) -> None:
    absolute = folder / "new/above.png"
    source = table(folder, f"label;path;prediction\nok;ok/b.png;x\nok;{absolute};y\ndefective;./defective/1.tiff;z\n")
    found = find_labelled(source)
    assert found.files.paths == ["ok/b.png", str(absolute), "./defective/1.tiff"]
    assert found.labels == ["ok", "ok", "defective"]
    assert [found.files.read(path) for path in found.files.paths] == [b"ok/b.png", b"above.png", b"defective/1.tiff"]


def test_accents_of_a_class_are_composed(folder: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "défaut")
    assert find_labelled(table(folder, f"path,label\na.png,{decomposed}\n")).labels == ["défaut"]
    (folder / "new/ok").rename(folder / "new" / decomposed)
    assert find_labelled("new").labels == ["defective", "défaut", "défaut"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\na.png,ok\n", "the first line has no column label"),
        ("path,label\n", "no picture there"),
        ("path,label\na.png,ok\na.png,ok\n", r"faulty rows: 1, .*\n  line 3: a\.png is listed again"),
        ("path,label\n,ok\nb.png,\n", r"faulty rows: 2, .*\n  line 2: the path is empty\n  line 3: the label is empty"),
        ("path,label\na.png\n", "line 2: has 1 cells, where the first line has 2"),
    ],
)
def test_a_table_that_says_too_little_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)^data=new/labels\.csv: .*{message}"):
        find_labelled(table(folder, text))


def test_what_holds_no_labelled_picture_is_refused(folder: Path) -> None:
    for source, message in (
        ("gone", "no such folder or table"),
        ("gone.csv", "No such file or directory"),
        ("new/ok/deep", "no picture there. Expected <folder>/<class>/<pictures>"),
        (table(folder, "path,label\nä,ok\n", "latin-1"), "not UTF-8"),
    ):
        with pytest.raises(UserError, match=f"^data={source}: {message}"):
            find_labelled(source)


def test_a_folder_of_splits_is_not_taken_for_one_of_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, splits=["train", "test"], num_pictures=1)
    with pytest.raises(UserError, match=r"holds splits\. Name one of them: test, train"):
        find_labelled(str(tmp_path))
    assert find_labelled(str(tmp_path / "test")).labels == ["cat", "dog"]
