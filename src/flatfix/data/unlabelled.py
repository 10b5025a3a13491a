"""Pictures without labels: those of a folder, a list, an S3 prefix, or a single one."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from flatfix.data import s3
from flatfix.data.decoders import num_cores
from flatfix.data.sources.tree import EXTENSIONS, extension_of, is_picture, tree_at
from flatfix.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Unlabelled:
    """Name pictures, and read them.

    Attributes:
        paths: of the pictures, in order, spelled as the input spells them: a folder's begin with the folder as it was
            given, a list's are its lines, an S3 prefix's are `s3://` addresses.
        root: folder that relative paths are relative to.
    """

    paths: Sequence[str]
    root: Path = Path()

    def read(self, path: str) -> bytes:
        """Return the bytes of one picture; OSError where this one cannot be read, UserError where none can."""
        return s3.read(path) if path.startswith(s3.SCHEME) else (self.root / path).read_bytes()

    @property
    def num_threads(self) -> int:
        """How many threads can read and decode at a time: those of S3 mostly wait."""
        return s3.CONNECTIONS if any(path.startswith(s3.SCHEME) for path in self.paths) else num_cores()


def find_pictures(source: str) -> Unlabelled:
    """Find the pictures that the option `input` means.

    - a folder: every file below it with a picture's extension, hidden ones left out, sorted by path
    - `s3://bucket/prefix`: the same of the objects below `prefix/`, or the picture that has this address
    - a `.txt`: a path a line, in the list's order, relative to the list's folder or absolute or an `s3://` address
    - a `.csv`: such paths in a column `path`
    - a picture file

    Raises:
        UserError: for anything else, for an S3 store that does not answer, and where there is no picture.
    """
    path = Path(source).expanduser()
    extension = extension_of(source)
    try:
        if source.startswith(s3.SCHEME):
            tree = tree_at(source)
            found = Unlabelled([source] if is_picture(source) else sorted(f"{tree}/{name}" for name in tree.pictures()))
        elif path.is_dir():
            found = Unlabelled(sorted(str(path / name) for name in tree_at(path).pictures()))
        elif not path.is_file():
            raise UserError(f"{source}: no such file or folder.")
        elif extension in LISTS:
            found = Unlabelled(_listed(path, extension), path.parent)
        elif is_picture(source):
            found = Unlabelled([str(path)])
        else:
            raise UserError(f"{source}: neither a folder, nor a list ({', '.join(LISTS)}), nor a picture.")
        if not found.paths:
            raise UserError(f"{source}: no picture there. Pictures end in {', '.join(sorted(EXTENSIONS))}.")
    except UserError as error:
        raise UserError(f"input={error}") from error
    return found


def _listed(path: Path, extension: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = [listed for listed in LISTS[extension](file) if listed]
        if any("\0" in listed for listed in found):
            raise csv.Error("it holds NUL bytes")
        return found
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a list in UTF-8 ({error}).") from error


def _lines(file: TextIO) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in file)


def _column(file: TextIO) -> Iterator[str]:
    rows = csv.DictReader(file)
    names = list(rows.fieldnames or [])
    if "path" not in names:
        raise UserError(f"{file.name}: no column 'path' among {', '.join(names)}.{did_you_mean('path', names)}")
    return (row["path"] for row in rows)


LISTS = {".txt": _lines, ".csv": _column}
