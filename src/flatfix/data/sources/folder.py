"""Pictures in class folders, with or without train, val and test above them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flatfix.data.sources.base import Record
from flatfix.errors import UserError

# heic, heif and avif cannot be decoded, but they are pictures: publishing has to name them, not to pass them by.
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif"}
)
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class FolderSource:
    """Read `<root>/<class>/**/<picture>` or `<root>/<split>/<class>/**/<picture>`.

    Split folders are train, val (or valid, validation) and test. Hidden files, and files whose extension is not a
    picture's, are left out. Ids are relative paths without the extension, or with it where two files differ in
    nothing else.
    """

    root: str | Path

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, in alphabetical order.

        Raises:
            UserError: for a root that is not laid out as above, has one class only, or a class without a picture.
        """
        return tuple(sorted({record.label for record in self._records}))

    def records(self) -> list[Record]:
        """List the pictures, sorted by path within split and class.

        Raises:
            UserError: as for `classes`.
        """
        return self._records

    def read(self, record: Record) -> bytes:
        """Return the bytes of one file."""
        return (self._path / record.location).read_bytes()

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Name the folder."""
        return {"kind": "folder", "root": str(self._path)}

    @property
    def _path(self) -> Path:
        return Path(self.root).expanduser().absolute()

    @cached_property
    def _records(self) -> list[Record]:
        found = []  # (split, label, location)
        labels = set()
        for split, above in self._split_folders():
            for name in _visible_folders(self._path / above):
                label = unicodedata.normalize("NFC", name)
                labels.add(label)
                found += [(split, label, location) for location in pictures(self._path, Path(above, name))]
        if empty := labels - {label for _, label, _ in found}:
            raise self._wrong(f"no picture in the class folder {', '.join(sorted(empty))}")
        if len(labels) < 2:
            raise self._wrong(f"a classifier needs at least two class folders, found {len(labels)}")
        ids = ids_of([location for _, _, location in found])
        return [
            Record(id, label, location, extension_of(location)[1:], split)
            for id, (split, label, location) in zip(ids, found, strict=True)
        ]

    def _split_folders(self) -> list[tuple[str | None, str]]:
        """Return (split, folder below the root) of every folder that holds class folders."""
        if not self._path.is_dir():
            raise self._wrong("no such folder")
        names = _visible_folders(self._path)
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
            f"dataset.source.root={self.root}: {what}. Expected <root>/<class>/<pictures>, "
            "or <root>/train/<class>/<pictures> with val and test beside train."
        )


def ids_of(locations: Sequence[str]) -> list[str]:
    """Return paths without the extension, or with it where two files differ in nothing else."""
    stems = [os.path.splitext(location)[0] for location in locations]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else location for stem, location in zip(stems, locations, strict=True)]


def extension_of(location: str) -> str:
    """Return the extension in lower case, with the dot, as in `EXTENSIONS`."""
    return os.path.splitext(location)[1].lower()


def _visible_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def pictures(root: Path, below: Path) -> Iterator[str]:
    """Yield paths relative to `root`, in sorted order, through links to folders as well."""
    for parent, folders, files in os.walk(root / below, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_loop(parent, name))
        relative = Path(parent).relative_to(root).as_posix()
        for name in sorted(files):
            if not name.startswith(".") and extension_of(name) in EXTENSIONS:
                yield f"{relative}/{name}"


def _is_loop(parent: str, name: str) -> bool:
    """Say whether a folder is a link to one that it lies in."""
    path = Path(parent, name)
    return path.is_symlink() and Path(parent).resolve().is_relative_to(path.resolve())
