"""Read, check and decode every picture of a source once, and lay the readable ones into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatfix.console import progress
from flatfix.data.ahead import map_ahead
from flatfix.data.likeness import difference_hash
from flatfix.data.shards import ShardWriter
from flatfix.data.sources.base import Record, Source
from flatfix.inference.decode import UnreadableImageError, decode

Row = dict[str, Any]  # one line of the index, by the names of `version.INDEX_SCHEMA`
AHEAD = 64  # pictures in memory at a time: enough to keep every thread busy


@dataclass(frozen=True)
class Staged:
    """What a folder of shards holds.

    Attributes:
        rows: of the index, in the order of the shards.
        shard_names: of the tar files in the folder.
        unreadable: location and reason of every picture left out, sorted.
        levels: `[3, 256]`, how often each level of red, green and blue occurs in the train pictures, where every
            picture adds 1 to each channel.
        hashes: `[N, 2]`, see `likeness.difference_hash`, for each of `rows`.
    """

    rows: list[Row]
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


def stage(source: Source, records: Sequence[Record], folder: Path, shard_bytes: int) -> Staged:
    """Write the readable pictures into shards, in the order of `records`."""
    rows: list[Row] = []
    unreadable: list[str] = []
    levels = np.zeros((3, 256))
    hashes = bytearray()
    with ShardWriter(folder, shard_bytes) as shards, progress("Publishing", len(records)) as advance:
        for picture in map_ahead(partial(_examine, source), records, AHEAD):
            advance(1)
            if isinstance(picture, str):
                unreadable.append(picture)
                continue
            row: Row = {name: getattr(picture.record, name) for name in ("id", "split", "label", "target", "group")}
            row |= shards.add(picture.record, picture.data)._asdict()
            row |= {name: getattr(picture, name) for name in ("width", "height", "sha256")}
            rows.append(row)
            hashes += picture.hash.tobytes()
            if picture.record.split == "train":
                levels += picture.levels
    return Staged(rows, shards.names, sorted(unreadable), levels, np.frombuffer(hashes, np.uint64).reshape(-1, 2))


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
