"""Files of a dataset version that no pictures were needed for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from flatfix.data.blobs import file_sha256
from flatfix.data.manifest import Manifest, Shard
from flatfix.data.version import INDEX_NAME


def stage_noise(folder: Path, shard_bytes: Sequence[int] = (1000, 1000, 1000), seed: int = 0) -> Manifest:
    """Write shards and an index of random bytes into a folder, and return the manifest of `noise/v1`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    shards = []
    for number, num_bytes in enumerate(shard_bytes):
        path = folder / f"shard-{number:05d}.tar"
        path.write_bytes(draw.randbytes(num_bytes))
        shards.append(Shard(path.name, num_bytes, file_sha256(path)))
    (folder / INDEX_NAME).write_bytes(draw.randbytes(100))
    return Manifest(
        name="noise",
        version="v1",
        digest=f"{draw.getrandbits(256):064x}",
        classes=("cat", "dog"),
        splits={split: {"cat": 1, "dog": 1} for split in ("train", "val", "test")},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        source={"kind": "noise"},
        created="2026-01-01T00:00:00+00:00",
        shards=tuple(shards),
        index_sha256=file_sha256(folder / INDEX_NAME),
    )
