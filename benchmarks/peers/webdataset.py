"""WebDataset: https://github.com/webdataset/webdataset."""

from __future__ import annotations

from typing import Any

import webdataset as wds
from torch import Tensor

from benchmarks.peers.task import NUM_PIECES, SEED, Epoch, Task, client, decode, pictures, split, upload_folder


def write(task: Task) -> None:
    """Lay the pictures into tar files."""
    folder = task.folder / "shards"
    folder.mkdir()
    chosen = pictures(task.pictures)
    with wds.ShardWriter(f"{folder}/%06d.tar", maxcount=-(-len(chosen) // NUM_PIECES), verbose=0) as writer:
        for number, picture in enumerate(chosen):
            extension = picture.path.suffix[1:]
            writer.write({"__key__": f"{number:08}", extension: picture.path.read_bytes(), "cls": picture.label})
    upload_folder(folder, task.uri)


def read(task: Task) -> Epoch:
    """Read the tar files over HTTP with presigned addresses, through a cache on the disk."""
    bucket, prefix = split(task.uri)
    keys = [item["Key"] for item in client().list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
    urls = [client().generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}) for key in keys]

    def decoded(stored: dict[str, Any]) -> tuple[Tensor, int]:
        data = stored.get("jpg") or stored["png"]
        return decode(data, task.size), int(stored["cls"])

    dataset = wds.WebDataset(urls, shardshuffle=len(urls), cache_dir=str(task.folder), seed=SEED)
    dataset = dataset.shuffle(1000).map(decoded).batched(task.batch_size, partial=False)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=task.num_workers, persistent_workers=True)
    return lambda _: loader
