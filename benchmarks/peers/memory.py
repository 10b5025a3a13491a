"""A tensor in memory: no system, but the fastest that plain PyTorch hands out shuffled batches."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from benchmarks.peers.flatfix import examples
from benchmarks.peers.task import SEED, Batch, Epoch, Task


def read(task: Task) -> Epoch:
    """Take Flatfix's pixels into memory, whatever that costs, and select rows of them."""
    held = examples(task)
    images, labels = torch.from_numpy(np.array(held.inputs)), torch.from_numpy(held.labels)

    def epoch(number: int) -> Iterable[Batch]:
        draw = torch.Generator().manual_seed(SEED + number)
        order = torch.randperm(len(images), generator=draw)
        for start in range(0, len(order) - task.batch_size + 1, task.batch_size):
            rows = order[start : start + task.batch_size]
            yield images.index_select(0, rows), labels[rows]

    return epoch
