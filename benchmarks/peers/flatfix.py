"""Flatfix: a version that is published to S3, and what a run reads it with."""

from __future__ import annotations

from collections.abc import Iterable

import flatfix.data.s3_store  # noqa: F401  open_store imports it when it is called
from benchmarks.peers.task import SEED, Batch, Epoch, Task, pictures, piece_bytes
from flatfix.data.cache import Examples, decoded
from flatfix.data.datamodule import BatchLoader
from flatfix.data.publish import publish
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import Store, open_store
from flatfix.data.version import open_version

NAME, VERSION = "pictures", "v1"


def store(task: Task) -> Store:
    """Return the store in the bucket, with its cache in the task's folder."""
    return open_store({"uri": task.uri, "endpoint_url": None, "region": None}, task.folder)


def examples(task: Task) -> Examples:
    """Return all pictures, fetched and decoded if need be."""
    version = open_version(store(task), NAME, VERSION)
    return decoded(
        version,
        "train",
        image_size=task.size,
        resize="squash",
        cache_dir=task.folder,
        gigabytes=task.gigabytes,
    )


def write(task: Task) -> None:
    """Publish all pictures as train pictures."""
    publish(
        FolderSource(task.pictures),
        store(task),
        name=NAME,
        version=VERSION,
        rule=SplitRule(0, 0),
        shard_bytes=piece_bytes(pictures(task.pictures)),
    )


def read(task: Task) -> Epoch:
    """Open the version, decode it into the cache, and hand out batches."""
    loader = BatchLoader(examples(task), task.batch_size, is_training=True, seed=SEED)

    def epoch(number: int) -> Iterable[Batch]:
        loader.set_epoch(number)
        return ((batch.inputs, batch.labels) for batch in loader)

    return epoch
