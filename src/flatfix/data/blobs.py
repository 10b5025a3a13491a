"""Keep what was fetched over the network by its content: one download for all processes of the machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flatfix.console import say
from flatfix.files import locked, needing_room

FIX = "Free some, name another folder (TMPDIR for action=verify), or set a lower dataset.cache_gigabytes."


class DamagedFileError(Exception):
    """Report that a file has not the sha256 that it should have."""


class Blobs:
    """Keep files under their sha256 in a folder, at most `limit_bytes` of them; the least recently used go first.

    Any number of processes of one machine may share the folder. A file that another process has mapped may go: what
    it mapped stays readable.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def get(self, sha256: str, download: Callable[[Path], None]) -> Path:
        """Return the file with this content, once it is found to be whole; `download` writes one that is not here.

        A damaged copy is downloaded again.

        Raises:
            DamagedFileError: when what was downloaded has another content; it is not kept.
            UserError: when the disk is full.
        """
        path = self.folder / sha256
        with self._lock(sha256):
            if self.find(sha256):
                return path
            # Nobody else writes this file: one that a killed process left behind is overwritten.
            partial = self.folder / f".{sha256}.partial"
            try:
                with needing_room("paths.cache", str(self.folder), FIX):
                    download(partial)
                if file_sha256(partial) != sha256:
                    path.unlink(missing_ok=True)
                    raise DamagedFileError
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            self._evict(path)
            return path

    def find(self, sha256: str) -> Path | None:
        """Return the file with this content if it is here and whole."""
        path = self.folder / sha256
        with suppress(FileNotFoundError):
            if file_sha256(path) == sha256:
                os.utime(path)
                return path
            say(f"{path}: damaged, not used")
        return None

    @contextmanager
    def _lock(self, sha256: str, is_patient: bool = True) -> Iterator[None]:
        """Hold the lock of this content, and of a 256th of all others; BlockingIOError rather than wait, if told to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / f".{sha256[:2]}.lock", waits=is_patient):
            yield

    def _evict(self, newest: Path) -> None:
        """Delete the files used longest ago until the others keep to the limit; spare what is in somebody's hands."""
        if self.limit_bytes is None:
            return
        files = []
        for path in self.folder.glob("[!.]*"):
            with suppress(FileNotFoundError):  # another process was faster
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        excess = sum(size for _, size, _ in files) - self.limit_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            if path == newest:
                continue
            with suppress(BlockingIOError), self._lock(path.name, is_patient=False):
                path.unlink(missing_ok=True)
                excess -= size


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
