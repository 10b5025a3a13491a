"""Write pictures into tar files that WebDataset reads, and say where in them each picture lies."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from flatfix.data.sources.base import Record

# Every write to the disk lets another thread take the interpreter, and waits to get it back: rarely, then.
BUFFER_BYTES = 1 << 20


class Place(NamedTuple):
    """Where the bytes of one picture lie."""

    shard: str
    offset: int
    length: int


class ShardWriter:
    """Write `shard-00000.tar` and so on into a folder: `<id>.json` and `<id>.<extension>` for each picture.

    The same pictures in the same order give the same bytes. The next shard begins once one has
    `shard_bytes`, and after whole pictures only.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.names: list[str] = []
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._tar: tarfile.TarFile | None = None
        self._open_files = ExitStack()

    def add(self, record: Record, data: bytes) -> Place:
        """Append one picture."""
        if self._tar is None or self._tar.offset >= self._shard_bytes:
            self._tar = self._next_shard()
        facts = {name: getattr(record, name) for name in ("label", "split", "target", "group")}
        _append(self._tar, f"{record.id}.json", json.dumps(facts, ensure_ascii=False).encode())
        offset = _append(self._tar, f"{record.id}.{record.extension}", data)
        return Place(self.names[-1], offset, len(data))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    def _next_shard(self) -> tarfile.TarFile:
        self._open_files.close()
        self.names.append(f"shard-{len(self.names):05d}.tar")
        path = self._folder / self.names[-1]
        file = self._open_files.enter_context(path.open("wb", buffering=BUFFER_BYTES))
        return self._open_files.enter_context(tarfile.open(fileobj=file, mode="w"))


def extensions(path: Path) -> dict[int, str]:
    """Return the extension, without the dot, of what begins at each offset of a shard."""
    with tarfile.open(path) as tar:
        return {member.offset_data: member.name.partition(".")[2] for member in tar}


def _append(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member and return the offset of its bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    num_blocks = -(-len(data) // tarfile.BLOCKSIZE)
    return tar.offset - num_blocks * tarfile.BLOCKSIZE
