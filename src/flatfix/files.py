"""Files and folders that appear whole or not at all, locks that are files, and disks without room."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from flatfix.errors import UserError


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a hidden name beside `path` to write to, which becomes `path` when the block ends without an error.

    The folder is made when it is missing. On an error whatever was at `path` stays, and the hidden file goes. What is
    durable outlasts a loss of power from then on, which takes the disk some milliseconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        yield partial
        if durable:
            sync(partial)
        os.replace(partial, path)
        if durable:
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, written down to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder to fill, which becomes `folder` when the block ends without an error.

    What lies above it is made when it is missing. An empty folder gives way.

    Raises:
        FileExistsError: when `folder` holds something.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: there is something already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        whole = Path(temporary, "whole")
        whole.mkdir()  # with the permissions that are usual here; a temporary folder has fewer
        yield whole
        whole.replace(folder)


@contextmanager
def locked(path: Path, *, waits: bool = True) -> Iterator[None]:
    """Hold the lock that a file is, made when it is missing, against other processes and threads.

    Raises:
        BlockingIOError: when somebody else holds it and `waits` is false.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def needing_room(option: str, what: str, fix: str) -> Iterator[None]:
    """Raise a UserError that names the option, what had no room and what to do, when a disk is full in the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{option}: no space left for {what}. {fix}") from error
