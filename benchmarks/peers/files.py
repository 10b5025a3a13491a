"""One GET for each picture with boto3, the folder tree as it is: what a training script does that knows no better."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.task import Epoch, Picture, Task, client, decode, pictures, split, upload

KEEPS_NOTHING = True  # each epoch is as the first


def write(task: Task) -> None:
    """Put every file into the bucket."""
    upload(((picture.path, picture.key) for picture in pictures(task.pictures)), task.uri)


class Objects(Dataset[tuple[Tensor, int]]):
    """Read one object a picture; those of a batch in `num_threads` threads at a time."""

    def __init__(self, pictures: list[Picture], uri: str, size: int, num_threads: int) -> None:
        self.pictures, self.size, self.num_threads = pictures, size, num_threads
        self.bucket, self.prefix = split(uri)
        self.pool: ThreadPoolExecutor | None = None  # of each worker: threads do not survive a fork

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Ask for a picture and decode it."""
        picture = self.pictures[index]
        answer = client().get_object(Bucket=self.bucket, Key=f"{self.prefix}/{picture.key}")
        return decode(answer["Body"].read(), self.size), picture.label

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """Ask for the pictures of a batch."""
        if self.num_threads == 1:
            return [self[index] for index in indices]
        client()  # two threads must not make it at once
        self.pool = self.pool or ThreadPoolExecutor(self.num_threads)
        return list(self.pool.map(self.__getitem__, indices))


def read(task: Task) -> Epoch:
    """Read with one thread in this process, or with the threads shared out to the workers.

    The names and labels are known: no time goes into listing the bucket.
    """
    num_workers = task.num_workers if task.num_threads > 1 else 0
    chosen = pictures(task.pictures)[: task.sample]
    objects = Objects(chosen, task.uri, task.size, task.num_threads // max(num_workers, 1))
    loader = DataLoader(objects, task.batch_size, shuffle=True, drop_last=True, num_workers=num_workers)
    return lambda _: loader
