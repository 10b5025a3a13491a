"""What every system is asked to do with one data set, and what they share in doing it. Knows nothing of Flatfix.

`mosaicml-streaming` runs in an environment of its own, so these modules import only what every environment has.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import numpy as np
import torch
from botocore.config import Config
from PIL import Image
from torch import Tensor

SEED = 0
NUM_UPLOADS = 16
# Shards or chunks of a data set. Those of the default sizes (64 MB to 1 GB) would leave one for two workers.
NUM_PIECES = 16

Batch = tuple[Tensor, Tensor]  # [N, size, size, 3] uint8 and [N] int64
Epoch = Callable[[int], Iterable[Batch]]  # takes the number of the epoch


@dataclass(frozen=True)
class Task:
    """Say what is to be written or read.

    Attributes:
        pictures: folder of class folders, the data set as files.
        folder: to write in: what is to be uploaded, or the cache, which is empty at the start.
        uri: `s3://bucket/prefix` where this system's form of the data set lies.
        size: height and width of what is read; pictures of another size are resized.
        batch_size: pictures in a batch; an incomplete last batch is dropped.
        num_workers: processes that a DataLoader has.
        num_threads: that ask for single pictures at a time, in all processes together.
        sample: how many pictures are asked for one by one in an epoch; None for all.
        gigabytes: that Flatfix's decoded pixels may take on the disk; None for what is free.
    """

    pictures: Path
    folder: Path
    uri: str
    size: int
    batch_size: int
    num_workers: int = 2
    num_threads: int = 1
    sample: int | None = None
    gigabytes: float | None = None


class Picture(NamedTuple):
    """Name a file and its class."""

    path: Path
    label: int

    @property
    def key(self) -> str:
        """Its key below the prefix, where every picture is an object."""
        return f"{self.label}/{self.path.name}"


def pictures(folder: Path) -> list[Picture]:
    """List the pictures in a seeded order without pattern: every system recommends to write them so."""
    classes = sorted(path for path in folder.iterdir())
    found = [Picture(path, label) for label, each in enumerate(classes) for path in sorted(each.iterdir())]
    random.Random(SEED).shuffle(found)
    return found


def piece_bytes(pictures: Iterable[Picture]) -> int:
    """Return the size of a shard or chunk for the systems that lay pictures into such, see `NUM_PIECES`."""
    return -(-sum(picture.path.stat().st_size for picture in pictures) // NUM_PIECES)


def decode(data: bytes, size: int) -> Tensor:
    """Return `[size, size, 3]` uint8, decoded and resized by Pillow."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture))


@cache
def client() -> Any:
    """Return this process's client of the server that the environment names."""
    return boto3.client("s3", config=Config(max_pool_connections=NUM_UPLOADS))


def split(uri: str) -> tuple[str, str]:
    """Return bucket and prefix."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix


def upload(files: Iterable[tuple[Path, str]], uri: str) -> None:
    """Put each file under its key below the prefix."""
    bucket, prefix = split(uri)

    def put(file: tuple[Path, str]) -> None:
        path, key = file
        client().put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=path.read_bytes())

    with ThreadPoolExecutor(NUM_UPLOADS) as pool:
        list(pool.map(put, files))


def upload_folder(folder: Path, uri: str) -> None:
    """Put all that lies in a folder below the prefix."""
    upload(((path, path.name) for path in sorted(folder.iterdir())), uri)
