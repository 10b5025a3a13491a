"""Write the pictures of a dataset version as files again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from flatfix.console import progress
from flatfix.data.sources.base import Record
from flatfix.data.sources.published import PublishedSource
from flatfix.data.version import DatasetVersion
from flatfix.errors import UserError


def pull(version: DatasetVersion, folder: Path) -> None:
    """Write the original bytes of every picture to `<folder>/<split>/<class>/…`.

    The folder appears whole or not at all. Below its class a picture lies under its id, which loses the split and
    class that it begins with, unless two pictures would then be one. A `FolderSource` reads the folder; groups and
    targets are not in it.

    Raises:
        UserError: for a folder that holds something, or a class whose name cannot be a folder's.
        DamagedVersionError: when a file of the version is missing or was altered.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"to={folder}: there is something already. Name a folder that is new or empty.")
    for label in version.manifest.classes:
        if "/" in label or label.startswith("."):
            raise UserError(f"action=pull: the class {label!r} of {version.manifest.name} cannot be a visible folder.")
    source = PublishedSource(version)
    records = source.records()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary,
        progress("Pulling", len(records)) as advance,
    ):
        whole = Path(temporary, "whole")
        whole.mkdir()
        for record, path in zip(records, _paths(records), strict=True):
            file = whole / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(source.read(record))
            advance(1)
        whole.replace(folder)  # an empty folder gives way


def _paths(records: Sequence[Record]) -> list[str]:
    """Return where each picture goes."""
    short = [
        record.id.removeprefix(f"{record.split}/").removeprefix(f"{record.label}/") or record.id for record in records
    ]
    for ids in (short, [record.id for record in records]):
        paths = [
            f"{record.split}/{record.label}/{id}.{record.extension}" for record, id in zip(records, ids, strict=True)
        ]
        if len(set(paths)) == len(paths):
            break
    return paths
