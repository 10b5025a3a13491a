"""Pictures without labels: those of a folder, a list, an S3 prefix, or a single one."""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from flatfix.data import s3
from flatfix.data.ahead import map_ahead
from flatfix.data.sources.tree import EXTENSIONS, extension_of, is_picture, tree_at
from flatfix.errors import UserError, did_you_mean
from flatfix.inference.decode import UnreadableImageError, load
from flatfix.machine import num_cores


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

    def decoded(self, size: int, resize: str, num_ahead: int) -> Generator[NDArray[np.uint8] | str, None, None]:
        """Yield each picture as training saw it, `[size, size, 3]`, or why it cannot be read; in order.

        Threads read and decode at most `num_ahead` pictures before they are asked for.
        """
        return map_ahead(partial(self._decoded, size=size, resize=resize), self.paths, num_ahead, self.num_threads)

    def _decoded(self, path: str, size: int, resize: str) -> NDArray[np.uint8] | str:
        try:
            return load(self.read(path), size, resize)
        except UnreadableImageError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)

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


def printable(path: str) -> str:
    """Write out the bytes of a file's name that are not UTF-8, which neither a table nor a terminal can hold."""
    return path.encode(errors="backslashreplace").decode()


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
