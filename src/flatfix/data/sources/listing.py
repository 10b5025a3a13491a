"""Pictures that a file lists, a row each: what every such file has to pass before it is published."""

from __future__ import annotations

import io
import math
import os
import posixpath
import sys
import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import ClassVar, NamedTuple

from flatfix.data.ahead import map_ahead
from flatfix.data.sources.base import Record
from flatfix.data.sources.folder import ROOT, ids_of
from flatfix.data.sources.tree import Tree, extension_of, is_picture, tree_at
from flatfix.errors import UserError, enumerated

FILE = "dataset.source.file"
FOLDERS_AHEAD = 32  # looked into at a time: in S3, each is an answer to wait for
TARGET_TOLERANCE = 0.01  # by which the probabilities of a target may miss 1: people round them


class Row(NamedTuple):
    """Say of one picture what its row says, unchecked; `number` is the row's, for messages."""

    number: int
    path: str
    label: str
    split: str | None = None
    group: str | None = None
    target: tuple[float, ...] | None = None


class Faults:
    """Collect what is wrong with single rows, so that one error can name them all."""

    def __init__(self, row_name: str) -> None:
        self._row_name = row_name
        self._found: list[tuple[int, str]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def __str__(self) -> str:
        lines = [f"{self.name(number)}: {what}" for number, what in sorted(self._found)]
        num_rows = len({number for number, _ in self._found})
        return f"faulty rows: {num_rows:,}, nothing was read:{enumerated(lines)}"

    def add(self, number: int, what: str) -> None:
        """Take down a fault of a row."""
        self._found.append((number, what))

    def name(self, number: int) -> str:
        """Return how a message calls a row."""
        return self._row_name.format(number)


@dataclass(frozen=True)
class ListedSource(ABC):
    """Read the pictures that `file` lists; their paths are relative to `root`. Each of the two may lie in S3.

    A path may have the backslashes of Windows, and its accents may be composed otherwise than those of the file. Links
    may lead anywhere, a path may not leave `root`. Each file may be listed once: a picture that came twice could be
    trained on and tested. Classes are the labels in alphabetical order. Ids are those of a `FolderSource`.

    A subclass says how the file is read, and how a message calls a row.
    """

    file: str | Path
    root: str | Path

    kind: ClassVar[str]
    row_name: ClassVar[str]  # with {} for the number

    @abstractmethod
    def rows(self, text: str, faults: Faults) -> Iterator[Row]:
        """Yield the rows that can be read, and add the faults of the others.

        Raises:
            UserError: where the file is not of the kind that was configured.
        """

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Labels, in alphabetical order.

        Raises:
            UserError: as for `records`.
        """
        return tuple(sorted({record.label for record in self._records}))

    @property
    def num_readers(self) -> int | None:
        """How many threads read best at a time."""
        return self._tree.num_readers

    def records(self) -> list[Record]:
        """List the pictures in the file's order.

        Raises:
            UserError: for a file or root that is not there, for a single class, and for broken rows, which are all
                found and of which the first are named.
        """
        return self._records

    def read(self, record: Record) -> bytes:
        """Return the bytes of one picture."""
        return self._tree.read(record.location)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Name the file and the folder."""
        folder, name = self._file
        return {"kind": self.kind, "file": os.path.join(str(folder), name), "root": str(self._tree)}

    def wrong(self, what: str) -> UserError:
        """Return the error for a file that cannot be used."""
        return UserError(f"{FILE}={self.file}: {what}")

    @cached_property
    def _tree(self) -> Tree:
        return tree_at(self.root, ROOT)

    @property
    def _file(self) -> tuple[Tree, str]:
        """The folder of the file, and its name there."""
        folder, name = os.path.split(self.file)
        return tree_at(folder, FILE), name

    @cached_property
    def _records(self) -> list[Record]:
        if not self._tree.exists():
            raise UserError(f"{ROOT}={self.root}: no such folder.")
        faults = Faults(self.row_name)
        rows = _checked(self.rows(self._text(), faults), self._tree, faults)
        classes = sorted({row.label for row in rows})
        if not faults:  # broken rows may have been all of a class
            _check_targets(rows, len(classes), faults)
        if faults:
            raise self.wrong(f"{faults}\nPaths are relative to {ROOT}={self.root}.")
        if len(classes) < 2:
            raise self.wrong(f"a classifier needs at least two classes, found {', '.join(classes) or 'no picture'}.")
        return [
            Record(id, row.label, row.path, sys.intern(extension_of(row.path)[1:]), row.split, row.group, row.target)
            for id, row in zip(ids_of([row.path for row in rows]), rows, strict=True)
        ]

    def _text(self) -> str:
        folder, name = self._file
        try:
            return io.TextIOWrapper(io.BytesIO(folder.read(name)), encoding="utf-8-sig").read()
        except OSError as error:
            raise self.wrong(f"{error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise self.wrong(f"not UTF-8 ({error.reason} at byte {error.start}).") from error


def _checked(read: Iterable[Row], tree: Tree, faults: Faults) -> list[Row]:
    """Return the rows without fault, their labels in normal form and their paths as the tree has them."""
    rows = [
        row._replace(
            path=posixpath.normpath(row.path.replace("\\", "/")),
            label=sys.intern(unicodedata.normalize("NFC", row.label.strip())),
        )
        for row in read
    ]
    absent = _absent(tree, (spelling for row in rows for spelling in _spellings(row.path)))
    rows = [row._replace(path=_spelled(row.path, absent)) if row.path in absent else row for row in rows]
    first: dict[str, Row] = {}
    for row in rows:
        fault = _fault(row, absent)
        if fault is None and row.path in first:
            other = first[row.path]
            labels = "" if row.label == other.label else f", as {row.label} instead of {other.label}"
            fault = f"{row.path} is listed again{labels}, after {faults.name(other.number)}"
        if fault:
            faults.add(row.number, fault)
        else:
            first[row.path] = row
    return list(first.values())


def _fault(row: Row, absent: set[str]) -> str | None:
    """Return what is wrong with a row in normal form by itself."""
    if row.path == ".":
        return "the path is empty"
    if row.path.startswith("s3:/"):
        return f"the path is an address, where a key below {ROOT} is expected"
    if row.path.startswith("/"):
        return f"{row.path} is absolute"
    if row.path.split("/")[0] == "..":
        return f"{row.path} leads out of {ROOT}"
    if not is_picture(row.path):
        return f"{row.path} does not have the extension of a picture"
    if row.path in absent:
        return f"{row.path} does not exist"
    if not row.label:
        return "the label is empty"
    return None if row.label.isprintable() else f"the label {row.label!r} has characters that cannot be printed"


def _spellings(path: str) -> Iterable[str]:
    """Return a path as it is written, and in both normal forms of Unicode: a disk or a bucket may have any of them."""
    return dict.fromkeys((path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))))


def _spelled(path: str, absent: set[str]) -> str:
    """Return the spelling of a path that is there, or the path where none is."""
    return next((spelling for spelling in _spellings(path) if spelling not in absent), path)


def _absent(tree: Tree, paths: Iterable[str]) -> set[str]:
    """Return those of the paths that are no files: one look into each folder costs less than one at each file."""
    names: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, name = posixpath.split(path)
        names[folder].add(name)

    def absent(folder: str) -> list[str]:
        return [posixpath.join(folder, name) for name in names[folder].difference(tree.files(folder))]

    return set(chain.from_iterable(map_ahead(absent, names, FOLDERS_AHEAD, tree.num_readers)))


def _check_targets(rows: Sequence[Row], num_classes: int, faults: Faults) -> None:
    for row in rows:
        if row.target is None:
            continue
        if len(row.target) != num_classes:
            faults.add(
                row.number, f"the target has {len(row.target)} numbers, where the labels are {num_classes} classes"
            )
        elif not all(0 <= value <= 1 for value in row.target):
            faults.add(row.number, "the target has a number outside 0 to 1")
        elif not math.isclose(sum(row.target), 1, abs_tol=TARGET_TOLERANCE):
            faults.add(row.number, f"the target has the sum {sum(row.target):g}, where it must be 1")
