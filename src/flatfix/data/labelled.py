"""Pictures with labels that are no dataset version: those of class folders, or of a table."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flatfix.data import s3
from flatfix.data.sources.csv import REQUIRED, table_rows
from flatfix.data.sources.folder import SPLIT_FOLDERS
from flatfix.data.sources.listing import Faults
from flatfix.data.sources.tree import extension_of, tree_at
from flatfix.data.unlabelled import Unlabelled
from flatfix.errors import UserError

OPTION = "data"
TABLE = ".csv"


@dataclass(frozen=True)
class Labelled:
    """Name pictures and their classes.

    Attributes:
        files: the pictures, their paths spelled as `find_pictures` spells them.
        labels: name of the class of each picture.
    """

    files: Unlabelled
    labels: Sequence[str]


def find_labelled(source: str) -> Labelled:
    """Find the labelled pictures that the option `data` means.

    - a folder, or `s3://bucket/prefix`: every visible picture in the folders below it, whose names are the classes
    - a `.csv`: rows of `path` and `label`, in the table's order; paths are relative to the table's folder, or absolute,
      or `s3://` addresses

    Nothing is published: a class may lack pictures, and pictures need no split.

    Raises:
        UserError: for anything else, for broken rows, and where there is no picture.
    """
    labelled = _of_table(source) if extension_of(source) == TABLE else _of_folder(source)
    if not labelled.labels:
        raise _wrong(source, "no picture there. Expected <folder>/<class>/<pictures>, or rows of path and label.")
    return labelled


def _of_folder(source: str) -> Labelled:
    tree = tree_at(source, OPTION)
    if not tree.exists():
        raise _wrong(source, "no such folder or table.")
    root = Path(source).expanduser()
    is_remote = source.startswith(s3.SCHEME)
    names = sorted(name for name in tree.pictures() if "/" in name)
    folders = [name.partition("/")[0] for name in names]
    if names and {folder.lower() for folder in folders} <= SPLIT_FOLDERS.keys():
        raise _wrong(source, f"holds splits. Name one of them: {', '.join(sorted(set(folders)))}.")
    return Labelled(
        Unlabelled([f"{tree}/{name}" if is_remote else str(root / name) for name in names]),
        [unicodedata.normalize("NFC", folder) for folder in folders],
    )


def _of_table(source: str) -> Labelled:
    folder, name = os.path.split(os.path.expanduser(source))
    faults = Faults("line {}")
    labels: dict[str, str] = {}
    for number, cell in table_rows(
        _text(source, folder, name), REQUIRED, REQUIRED, faults, lambda what: _wrong(source, what)
    ):
        path, label = cell["path"], unicodedata.normalize("NFC", cell["label"])
        if not path or not label:
            faults.add(number, f"the {'label' if path else 'path'} is empty")
        elif path in labels:
            faults.add(number, f"{path} is listed again")
        else:
            labels[path] = label
    if faults:
        raise _wrong(source, str(faults))
    if source.startswith(s3.SCHEME):
        paths = [path if path.startswith(s3.SCHEME) else f"{folder}/{path}" for path in labels]
        return Labelled(Unlabelled(paths), list(labels.values()))
    return Labelled(Unlabelled(list(labels), Path(folder)), list(labels.values()))


def _text(source: str, folder: str, name: str) -> str:
    try:
        return io.TextIOWrapper(io.BytesIO(tree_at(folder, OPTION).read(name)), encoding="utf-8-sig").read()
    except OSError as error:
        raise _wrong(source, f"{error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise _wrong(source, f"not UTF-8 ({error.reason} at byte {error.start}).") from error


def _wrong(source: str, what: str) -> UserError:
    return UserError(f"{OPTION}={source}: {what}")
