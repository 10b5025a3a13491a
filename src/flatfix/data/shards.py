"""Write pictures into tar files that WebDataset reads, and say where in them each picture lies."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

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
        self._file: BinaryIO | None = None
        self._offset = 0

    def add(self, record: Record, data: bytes) -> Place:
        """Append one picture."""
        if self._file is None or self._offset >= self._shard_bytes:
            self._file = self._next_shard()
        facts = {name: getattr(record, name) for name in ("label", "split", "target", "group")}
        self._append(self._file, f"{record.id}.json", json.dumps(facts, ensure_ascii=False).encode())
        offset = self._append(self._file, f"{record.id}.{record.extension}", data)
        return Place(self.names[-1], offset, len(data))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _next_shard(self) -> BinaryIO:
        self._close()
        self.names.append(f"shard-{len(self.names):05d}.tar")
        self._offset = 0
        return (self._folder / self.names[-1]).open("wb", buffering=BUFFER_BYTES)

    def _append(self, file: BinaryIO, name: str, data: bytes) -> int:
        """Append a member and return the offset of its bytes."""
        header = _header(name, len(data))
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        for part in (header, data, padding):
            file.write(part)
        start = self._offset + len(header)
        self._offset = start + len(data) + len(padding)
        return start

    def _close(self) -> None:
        """End the archive, as `tarfile` does, with two empty blocks and more up to the size of a record."""
        if self._file:
            with self._file as file:
                end = self._offset + 2 * tarfile.BLOCKSIZE
                file.write(bytes(end - self._offset + -end % tarfile.RECORDSIZE))
            self._file = None


def extensions(shard: BinaryIO) -> dict[int, str]:
    """Return the extension, without the dot, of what begins at each offset of a shard."""
    found = {}
    with tarfile.open(fileobj=shard) as tar:
        for member in tar:
            found[member.offset_data] = member.name.partition(".")[2]
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep half a kilobyte of each
    return found


_EMPTY_HEADER = tarfile.TarInfo().tobuf()


def _header(name: str, size: int) -> bytes:
    """Return the blocks before a member: what `tarfile` writes, in a fifth of the time where the name is plain."""
    if len(name) > tarfile.LENGTH_NAME or not name.isascii() or size >= 8**11:
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf()
    block = bytearray(_EMPTY_HEADER)
    block[: len(name)] = name.encode()
    block[124:135] = b"%011o" % size
    block[148:156] = b" " * 8  # the checksum counts itself as blanks
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
