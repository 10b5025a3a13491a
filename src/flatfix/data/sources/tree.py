"""Where the files of a source lie: in a folder, or below a prefix in S3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

S3 = "s3://"

# heic, heif and avif cannot be decoded, but they are pictures: publishing has to name them, not to pass them by.
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif"}
)


class Tree(Protocol):
    """Files in folders below a root. A path is relative to the root, with slashes; that of the root is empty.

    As text it is the root's full address. A file or folder is hidden when its name begins with a dot.
    """

    @property
    def num_readers(self) -> int | None:
        """How many threads read best at a time; None for as many as there are cores."""
        ...

    def exists(self) -> bool:
        """Say whether the root is there."""
        ...

    def folders(self, below: str = "") -> list[str]:
        """Return the names of the folders directly in a folder, sorted, without those that are hidden."""
        ...

    def files(self, below: str = "") -> list[str]:
        """Return the names of all files directly in a folder, none where there is no such folder."""
        ...

    def pictures(self, below: str = "") -> Iterator[str]:
        """Yield the paths of all pictures in a folder and in those in it, in the same order each time.

        A picture has one of `EXTENSIONS`, and neither it nor a folder that it lies in is hidden.
        """
        ...

    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: when this file cannot be read.
            UserError: when none can be.
        """
        ...


def tree_at(root: str | Path, option: str | None = None) -> Tree:
    """Return the tree below a folder or `s3://bucket/prefix`, without a look at it.

    Errors of the server begin with `option`, the one that names the root.
    """
    if not str(root).startswith(S3):
        return LocalTree(root)
    from flatfix.data.sources.s3_tree import S3Tree  # imports boto3, which takes half a second

    return S3Tree(str(root), option)


class LocalTree:
    """Files below a folder, through links to files and folders as well."""

    num_readers = None

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()

    def __str__(self) -> str:
        return str(self.root)

    def exists(self) -> bool:
        """Say whether the folder is there."""
        return self.root.is_dir()

    def folders(self, below: str = "") -> list[str]:
        """Return the names of the folders directly in a folder."""
        with os.scandir(self.root / below) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))

    def files(self, below: str = "") -> list[str]:
        """Return the names of all files directly in a folder."""
        try:
            with os.scandir(self.root / below) as entries:
                return [entry.name for entry in entries if entry.is_file()]
        except (OSError, ValueError):  # no such folder, or a name that no folder could have
            return []

    def pictures(self, below: str = "") -> Iterator[str]:
        """Yield the paths of all pictures in a folder and in those in it, sorted within each folder."""
        for parent, folders, files in os.walk(self.root / below, followlinks=True):
            folders[:] = sorted(name for name in folders if not is_hidden(name) and not _is_loop(parent, name))
            relative = Path(parent).relative_to(self.root).as_posix()
            start = "" if relative == "." else f"{relative}/"
            yield from (f"{start}{name}" for name in sorted(files) if is_picture(name) and not is_hidden(name))

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        return (self.root / path).read_bytes()


def is_hidden(path: str) -> bool:
    """Say whether a part of a path begins with a dot, but for those that mean a folder and the one above it."""
    return "." in path and any(part[:1] == "." and part not in (".", "..") for part in path.split("/"))


def is_picture(path: str) -> bool:
    """Say whether a path ends as a picture's does."""
    return extension_of(path) in EXTENSIONS


def extension_of(path: str) -> str:
    """Return the extension in lower case, with the dot, as in `EXTENSIONS`."""
    return os.path.splitext(path)[1].lower()


def _is_loop(parent: str, name: str) -> bool:
    """Say whether a folder is a link to one that it lies in."""
    path = Path(parent, name)
    return path.is_symlink() and Path(parent).resolve().is_relative_to(path.resolve())
