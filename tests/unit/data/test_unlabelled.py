from __future__ import annotations

import os
from pathlib import Path

import pytest

from flatfix.data.unlabelled import find_pictures
from flatfix.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files whose content is their own path, in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a/2.JPG", "a/1.tiff", "a-b/0.webp", ".hidden.png", ".git/x.png", "notes.txt", "a/heic.heic"):
        file = tmp_path / "new" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return tmp_path


def test_a_folder_gives_its_visible_pictures_sorted_and_spelled_as_it_was_given(folder: Path) -> None:
    names = ["a-b/0.webp", "a/1.tiff", "a/2.JPG", "a/heic.heic", "b.png"]
    assert find_pictures("new").paths == [f"new/{name}" for name in names]
    assert find_pictures("./new/").paths == [f"new/{name}" for name in names]
    assert find_pictures(str(folder / "new")).paths == [f"{folder}/new/{name}" for name in names]
    assert find_pictures(".").paths == [f"new/{name}" for name in names]
    found = find_pictures("new")
    assert [found.read(path).decode() for path in found.paths] == names


def test_a_folder_is_followed_through_links_and_may_hold_names_that_are_not_utf_8(folder: Path) -> None:
    (folder / "linked").symlink_to(folder / "new" / "a")
    assert find_pictures("linked").paths == ["linked/1.tiff", "linked/2.JPG", "linked/heic.heic"]
    (folder / "latin").mkdir()
    Path(os.fsdecode(b"latin/caf\xe9.png")).write_bytes(b"coffee")
    found = find_pictures("latin")
    assert [found.read(path) for path in found.paths] == [b"coffee"]


def test_a_list_is_relative_to_its_own_folder_and_keeps_its_order_and_spelling(folder: Path) -> None:
    lines = ["./b.png", "a/2.JPG", str(folder / "new/a/1.tiff"), "with space .png", "b.png", "missing.png"]
    (folder / "new/with space .png").write_bytes(b"spaced")
    (folder / "new/list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([lines[0], "", *lines[1:], ""]).encode())
    found = find_pictures("new/list.txt")
    assert found.paths == lines
    assert [found.read(path) for path in lines[:4]] == [b"b.png", b"a/2.JPG", b"a/1.tiff", b"spaced"]
    with pytest.raises(FileNotFoundError):
        found.read("missing.png")


def test_the_column_path_of_a_table_is_a_list(folder: Path) -> None:
    (folder / "new/table.csv").write_text('class,path\nok,b.png\n"a, b","a/2.JPG"\n', encoding="utf-8")
    found = find_pictures("new/table.csv")
    assert found.paths == ["b.png", "a/2.JPG"]
    assert found.read("a/2.JPG") == b"a/2.JPG"


def test_one_picture_is_an_input_too(folder: Path) -> None:
    found = find_pictures("new/a/2.JPG")
    assert found.paths == ["new/a/2.JPG"]
    assert found.read("new/a/2.JPG") == b"a/2.JPG"


def test_an_object_in_a_list_or_by_itself_is_read_from_s3(folder: Path) -> None:
    (folder / "list.txt").write_text("s3://bucket/a.png\nnew/b.png\n", encoding="utf-8")
    assert find_pictures("list.txt").paths == ["s3://bucket/a.png", "new/b.png"]
    assert find_pictures("s3://bucket/some/a.png").paths == ["s3://bucket/some/a.png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "input=nowhere: no such file or folder"),
        ("new/a/", r"input=new/a/: no picture there\. Pictures end in .*\.png"),
        ("empty.txt", r"input=empty\.txt: no picture there"),
        ("wide.txt", r"input=wide\.txt: cannot be read as a list in UTF-8"),
        ("table.csv", r"input=table\.csv: no column 'path' among paths, label\. Did you mean 'paths'\?"),
        ("model.onnx", r"input=model\.onnx: neither a folder, nor a list \(\.txt, \.csv\), nor a picture"),
        ("s3://", "input=s3://: names no bucket. Expected s3://bucket/prefix"),
    ],
)
def test_what_is_no_input_is_refused_with_what_would_be(folder: Path, source: str, message: str) -> None:
    for picture in (folder / "new/a").iterdir():
        picture.unlink()
    (folder / "empty.txt").write_text("\n\n", encoding="utf-8")
    (folder / "wide.txt").write_text("b.png\n", encoding="utf-16")
    (folder / "table.csv").write_text("paths,label\nb.png,ok\n", encoding="utf-8")
    (folder / "model.onnx").touch()
    with pytest.raises(UserError, match=message):
        find_pictures(source)
