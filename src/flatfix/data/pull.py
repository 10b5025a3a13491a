"""Write the pictures of a dataset version as files again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from flatfix.console import progress
from flatfix.data.sources.base import Record
from flatfix.data.sources.published import PublishedSource
from flatfix.data.version import DatasetVersion
from flatfix.errors import UserError
from flatfix.files import filling, needing_room

MAX_NAME_BYTES = 255  # of a file or folder, on every file system in common use


def pull(version: DatasetVersion, folder: Path) -> None:
    """Write the original bytes of every picture to `<folder>/<split>/<class>/…`.

    The folder appears whole or not at all. Below its class a picture lies under its id, which loses the split and
    class that it begins with, unless two pictures would then be one. A name that is too long for a disk, as keys in
    S3 can be, is cut, and `~` and 32 digits of its sha256 then keep it apart from others that begin alike. A
    `FolderSource` reads the folder; groups and targets are not in it.

    Raises:
        UserError: for a folder that holds something, or a class whose name cannot be a folder's.
        DamagedVersionError: when a file of the version is missing or was altered.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"to={folder}: there is something already. Name a folder that is new or empty.")
    for label in version.manifest.classes:
        if "/" in label or label.startswith(".") or len(label.encode()) > MAX_NAME_BYTES:
            raise UserError(f"action=pull: the class {label!r} of {version.manifest.name} cannot be a visible folder.")
    source = PublishedSource(version)
    records = source.records()
    paths = _paths(records)
    if hostile := [path for path in paths if {"", ".", ".."} & set(path.split("/"))]:
        raise UserError(f"action=pull: {hostile[0]!r} of {version.manifest.name} would not lie in the folder.")
    with (
        needing_room("to", f"the pictures in {folder.parent}", "Free some, or name a folder on another disk."),
        filling(folder) as whole,
        progress("Pulling", len(records)) as advance,
    ):
        for record, path in zip(records, paths, strict=True):
            file = whole / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(source.read(record))
            advance(1)


def _paths(records: Sequence[Record]) -> list[str]:
    """Return where each picture goes."""
    short = [
        record.id.removeprefix(f"{record.split}/").removeprefix(f"{record.label}/") or record.id for record in records
    ]
    for ids in (short, [record.id for record in records]):
        paths = [
            f"{record.split}/{record.label}/{_fitting(f'{id}.{record.extension}')}"
            for record, id in zip(records, ids, strict=True)
        ]
        if len(set(paths)) == len(paths):
            break
    return paths


def _fitting(path: str) -> str:
    """Cut the names in a path that are too long, and end them in a hash of the whole name."""
    return "/".join(_cut(name) if len(name.encode()) > MAX_NAME_BYTES else name for name in path.split("/"))


def _cut(name: str) -> str:
    whole = name.encode()
    end = f"~{hashlib.sha256(whole).hexdigest()[:32]}{os.path.splitext(name)[1]}"
    return whole[: MAX_NAME_BYTES - len(end)].decode(errors="ignore") + end
