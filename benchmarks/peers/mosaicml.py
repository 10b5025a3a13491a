"""MosaicML Streaming: https://github.com/mosaicml/streaming."""

from __future__ import annotations

import os
from typing import Any

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch import Tensor

from benchmarks.peers.task import SEED, Epoch, Task, decode, pictures, piece_bytes, upload_folder


def write(task: Task) -> None:
    """Lay the pictures into shards."""
    folder, chosen = task.folder / "shards", pictures(task.pictures)
    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=piece_bytes(chosen)) as writer:
        for picture in chosen:
            writer.write({"image": picture.path.read_bytes(), "label": picture.label})
    upload_folder(folder, task.uri)


class Decoded(StreamingDataset):
    """Decode what is stored."""

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(**options)
        self._size = size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return pixels and label."""
        stored = super().__getitem__(index)
        return decode(stored["image"], self._size), stored["label"]


def read(task: Task) -> Epoch:
    """Stream the shards through a cache on the disk."""
    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    clean_stale_shared_memory()  # of a run that was broken off
    dataset = Decoded(
        task.size,
        remote=task.uri,
        local=str(task.folder / "shards"),
        shuffle=True,
        shuffle_seed=SEED,
        batch_size=task.batch_size,
    )
    loader = StreamingDataLoader(
        dataset, batch_size=task.batch_size, num_workers=task.num_workers, drop_last=True, persistent_workers=True
    )
    return lambda _: loader
