"""LitData: https://github.com/Lightning-AI/litData.

Its type `Image`, which its documentation prefers, keeps the bytes of the file and decodes them with torchvision.
"""

from __future__ import annotations

import os
from typing import Any

import litdata
from litdata.streaming import downloader
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from benchmarks.peers.task import SEED, Epoch, Picture, Task, pictures, piece_bytes, upload_folder


def sample(picture: Picture) -> dict[str, Any]:
    """Return what is stored of a picture: the bytes of its file, and its class."""
    return {"image": litdata.Image(path=str(picture.path)), "label": picture.label}


def write(task: Task) -> None:
    """Lay the pictures into chunks."""
    chunks, chosen = task.folder / "chunks", pictures(task.pictures)
    litdata.optimize(
        sample, chosen, str(chunks), chunk_bytes=piece_bytes(chosen), num_workers=1, reorder_files=False, verbose=False
    )
    upload_folder(chunks, task.uri)


def read(task: Task) -> Epoch:
    """Stream the chunks through a cache on the disk."""

    def decoded(stored: dict[str, Any]) -> tuple[Tensor, int]:
        picture = stored["image"]  # [3, H, W]
        if picture.shape[1:] != (task.size, task.size):
            picture = F.resize(picture, [task.size, task.size], antialias=True)
        return picture.permute(1, 2, 0), stored["label"]

    # It has no option for a server without TLS; without its fast client, chunks cannot be fetched from one at all.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    dataset = litdata.StreamingDataset(
        task.uri,
        cache_dir=str(task.folder),
        shuffle=True,
        drop_last=True,
        seed=SEED,
        transform=decoded,
        storage_options={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]},
    )
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=task.batch_size, num_workers=task.num_workers, persistent_workers=True
    )
    return lambda _: loader
