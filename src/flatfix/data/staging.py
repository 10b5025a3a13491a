"""Read, check and decode every picture of a source once, and lay the readable ones into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flatfix.console import progress
from flatfix.data.ahead import map_ahead
from flatfix.data.index import INDEX_SCHEMA, IndexWriter, Row
from flatfix.data.likeness import difference_hash
from flatfix.data.manifest import CONTENT
from flatfix.data.shards import ShardWriter
from flatfix.data.sources.base import Record, Source
from flatfix.data.version import INDEX_NAME
from flatfix.inference.decode import UnreadableImageError, decode
from flatfix.machine import num_cores

CHUNK = 8  # pictures that a thread examines before it waits for the interpreter to hand them over


@dataclass(frozen=True)
class Staged:
    """Say what was written into a folder.

    Attributes:
        content: the columns `CONTENT` of the index, which has the order of the shards.
        shard_names: of the tar files in the folder.
        unreadable: location and reason of every picture left out, sorted.
        levels: `[3, 256]`, how often each level of red, green and blue occurs in the train pictures, where every
            picture adds 1 to each channel.
        hashes: `[N, 2]`, see `likeness.difference_hash`, for each row of the index.
    """

    content: pa.Table
    shard_names: list[str]
    unreadable: list[str]
    levels: NDArray[np.float64]
    hashes: NDArray[np.uint64]


@dataclass(frozen=True)
class _Picture:
    record: Record
    data: bytes
    sha256: str
    width: int
    height: int
    levels: NDArray[np.float64]
    hash: NDArray[np.uint64]


def stage(source: Source, records: Iterable[Record], num_pictures: int, folder: Path, shard_bytes: int) -> Staged:
    """Write the readable pictures into shards, and the index, in the order of `records`."""
    unreadable: list[str] = []
    levels = np.zeros((3, 256))
    hashes = bytearray()
    with (
        ShardWriter(folder, shard_bytes) as shards,
        IndexWriter(folder / INDEX_NAME, CONTENT) as index,
        progress("Publishing", num_pictures) as advance,
    ):
        for picture in _examined(source, records):
            advance(1)
            if isinstance(picture, str):
                unreadable.append(picture)
                continue
            row: Row = {name: getattr(picture.record, name) for name in ("id", "split", "label", "target", "group")}
            row |= shards.add(picture.record, picture.data)._asdict()
            row |= {name: getattr(picture, name) for name in ("width", "height", "sha256")}
            index.add(row)
            hashes += picture.hash.tobytes()
            if picture.record.split == "train":
                levels += picture.levels
    content = pa.concat_tables(index.parts or [INDEX_SCHEMA.empty_table().select(CONTENT)])
    return Staged(content, shards.names, sorted(unreadable), levels, np.frombuffer(hashes, np.uint64).reshape(-1, 2))


def _examined(source: Source, records: Iterable[Record]) -> Iterator[_Picture | str]:
    """Yield each picture, or its location and why it cannot be read, while threads examine the next ones."""
    num_threads = source.num_readers or num_cores()
    rest = iter(records)
    chunks = iter(lambda: list(islice(rest, CHUNK)), [])

    def examine(chunk: Sequence[Record]) -> list[_Picture | str]:
        return [_examine(source, record) for record in chunk]

    for pictures in map_ahead(examine, chunks, num_threads + 2, num_threads):
        yield from pictures


def _examine(source: Source, record: Record) -> _Picture | str:
    """Return the picture, or its location and why it cannot be read."""
    try:
        data = source.read(record)
        pixels = decode(data)
    except UnreadableImageError as error:
        return f"{record.location}: {error}"
    except OSError as error:
        return f"{record.location}: {error.strerror or error}"
    height, width, channels = pixels.shape
    levels = [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(channels)]
    return _Picture(
        record,
        data,
        hashlib.sha256(data).hexdigest(),
        width,
        height,
        np.array(levels) / (height * width),
        difference_hash(pixels),
    )
