"""Pictures in class folders, with or without train, val and test above them."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from flatfix.data.sources.base import Record
from flatfix.data.sources.tree import Tree, extension_of, tree_at
from flatfix.errors import UserError

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ROOT = "dataset.source.root"  # option of all sources that have one


@dataclass(frozen=True)
class FolderSource:
    """Read `<root>/<class>/**/<picture>` or `<root>/<split>/<class>/**/<picture>`, in a folder or in S3.

    Split folders are train, val (or valid, validation) and test. Hidden files, and files whose extension is not a
    picture's, are left out. Ids are relative paths without the extension, or with it where two files differ in
    nothing else.
    """

    root: str | Path

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, in alphabetical order.

        Raises:
            UserError: for a root that is not laid out as above, has one class only, or a class without a picture, and
                for a key in S3 that is no path.
        """
        return tuple(sorted({record.label for record in self._records}))

    @property
    def num_readers(self) -> int | None:
        """How many threads read best at a time."""
        return self._tree.num_readers

    def records(self) -> list[Record]:
        """List the pictures, in the order in which the root lists them within split and class.

        Raises:
            UserError: as for `classes`.
        """
        return self._records

    def read(self, record: Record) -> bytes:
        """Return the bytes of one file."""
        return self._tree.read(record.location)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Name the folder."""
        return {"kind": "folder", "root": str(self._tree)}

    @cached_property
    def _tree(self) -> Tree:
        return tree_at(self.root, ROOT)

    @cached_property
    def _records(self) -> list[Record]:
        records: list[Record] = []
        labels: set[str] = set()
        for split, above in self._split_folders():
            label_of = {f"{name}/": unicodedata.normalize("NFC", name) for name in self._tree.folders(above)}
            labels.update(label_of.values())
            start = len(above) + 1 if above else 0
            locations = [path for path in self._pictures(above) if _first_folder(path, start) in label_of]
            # A million records are held at a time: what others have too is the same text, not one like it.
            records += [
                Record(
                    id,
                    label_of[_first_folder(location, start)],
                    location,
                    sys.intern(extension_of(location)[1:]),
                    split,
                )
                for id, location in zip(ids_of(locations), locations, strict=True)
            ]
        if empty := labels - {record.label for record in records}:
            raise self._wrong(f"no picture in the class folder {', '.join(sorted(empty))}")
        if len(labels) < 2:
            raise self._wrong(f"a classifier needs at least two class folders, found {len(labels)}")
        return records

    def _pictures(self, above: str) -> Iterator[str]:
        for path in self._tree.pictures(above):
            if not {"", ".", ".."}.isdisjoint(path.split("/")):
                raise self._wrong(f"the key {self._tree}/{path} has an empty part, or one of dots: rename this object")
            yield path

    def _split_folders(self) -> list[tuple[str | None, str]]:
        """Return (split, folder below the root) of every folder that holds class folders."""
        if not self._tree.exists():
            raise self._wrong("no such folder")
        names = self._tree.folders()
        splits = [name for name in names if name.lower() in SPLIT_FOLDERS]
        if not splits:
            return [(None, "")]
        if others := sorted(set(names) - set(splits)):
            raise self._wrong(f"the split folders {', '.join(splits)} lie beside others: {', '.join(others)}")
        if "train" not in map(str.lower, splits):
            raise self._wrong(f"{', '.join(splits)}, but no train folder")
        return [(SPLIT_FOLDERS[name.lower()], name) for name in splits]

    def _wrong(self, what: str) -> UserError:
        return UserError(
            f"{ROOT}={self.root}: {what}. Expected <root>/<class>/<pictures>, "
            "or <root>/train/<class>/<pictures> with val and test beside train."
        )


def _first_folder(path: str, start: int) -> str:
    """Return the name up to the first slash from `start` on, and the slash; nothing for a file that lies there."""
    return path[start : path.find("/", start) + 1]


def ids_of(locations: Sequence[str]) -> list[str]:
    """Return paths without the extension, or with it where two files differ in nothing else."""
    stems = [os.path.splitext(location)[0] for location in locations]
    shared = {one for one, other in pairwise(sorted(stems)) if one == other}
    return [location if stem in shared else stem for stem, location in zip(stems, locations, strict=True)]
