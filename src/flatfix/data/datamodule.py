"""Hand out whole batches: one gather a batch instead of one call a picture."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from flatfix.data.cache import Examples
from flatfix.errors import UserError


class Batch(NamedTuple):
    """Hold some rows of a split.

    Attributes:
        inputs: `[N, H, W, 3]` uint8 pictures or `[N, D]` float32 features.
        labels: `[N]` int64.
        indices: `[N]` int64, rows in the split.
        targets: `[N, C]` float32 soft labels, None where the split has none.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    targets: Tensor | None = None


def generator(*numbers: int) -> torch.Generator:
    """Return a generator that depends on whole numbers (a seed, an epoch, a step), not on what was drawn before."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64).tolist()
    return torch.Generator().manual_seed(seed)


class BatchLoader:
    """Iterate over a split in batches.

    In training the order is shuffled, depends only on the seed and the epoch (so a resumed run needs no state), and
    an incomplete last batch is dropped if there is a whole one. With `is_balanced`, every class comes equally often in
    an epoch of the same length: the examples of a rare class several times, those of a frequent one in part.
    In evaluation every example comes once, in order.
    """

    batch_sampler = None  # Lightning asks for it of whatever has a sampler

    def __init__(
        self, examples: Examples, batch_size: int, *, is_training: bool, is_balanced: bool = False, seed: int = 0
    ) -> None:
        self.batch_size = batch_size
        self._inputs = torch.from_numpy(examples.inputs)
        self._labels = torch.from_numpy(examples.labels)
        self._targets = None if examples.targets is None else torch.from_numpy(examples.targets)
        self._is_training = is_training
        self._is_balanced = is_balanced
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self._epoch = epoch

    @property
    def sampler(self) -> BatchLoader:
        """Itself: Lightning tells `loader.sampler` the epoch."""
        return self

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        whole, rest = divmod(len(self._labels), self.batch_size)
        return whole if rest == 0 or (self._is_training and whole) else whole + 1

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches of copies, which may be changed in place."""
        order = self._order()
        batches = zip(order.split(self.batch_size), self._labels[order].split(self.batch_size), strict=True)
        for rows, labels in islice(batches, len(self)):
            targets = None if self._targets is None else self._targets[rows]
            yield Batch(self._inputs.index_select(0, rows), labels, rows, targets)

    def _order(self) -> Tensor:
        count = len(self._labels)
        if not self._is_training:
            return torch.arange(count)
        draw = generator(self._seed, self._epoch)
        order = torch.randperm(count, generator=draw)
        return self._balanced(draw)[order] if self._is_balanced else order

    def _balanced(self, draw: torch.Generator) -> Tensor:
        """Return as many rows as there are, the same number of each class (or one more), class by class.

        Each class goes round in whole permutations: its own examples come equally often too, give or take one.
        """
        classes = self._labels.unique()
        rows = []
        for label, share in zip(classes, torch.arange(len(self._labels)).tensor_split(len(classes)), strict=True):
            members = torch.nonzero(self._labels == label).flatten()
            rounds = [torch.randperm(len(members), generator=draw) for _ in range(0, len(share), len(members))]
            rows.append(members[torch.cat(rounds)[: len(share)]])
        return torch.cat(rows)


class ImageDataModule(L.LightningDataModule):
    """Serve the three splits of a dataset to a Lightning trainer."""

    def __init__(
        self,
        train: Examples,
        val: Examples,
        test: Examples,
        *,
        batch_size: int,
        seed: int,
        is_balanced: bool = False,
    ) -> None:
        """Keep the examples; nothing is read yet.

        Raises:
            UserError: for a batch size below 1.
        """
        super().__init__()
        if batch_size < 1:
            raise UserError(f"dataset.batch_size={batch_size}: must be at least 1.")
        self.train, self.val, self.test = train, val, test
        self.batch_size, self.seed, self.is_balanced = batch_size, seed, is_balanced

    def train_dataloader(self) -> BatchLoader:
        """Return shuffled batches of the train split, balanced if that was asked for."""
        return BatchLoader(self.train, self.batch_size, is_training=True, is_balanced=self.is_balanced, seed=self.seed)

    def val_dataloader(self) -> BatchLoader:
        """Return the val split in order."""
        return BatchLoader(self.val, self.batch_size, is_training=False)

    def test_dataloader(self) -> BatchLoader:
        """Return the test split in order."""
        return BatchLoader(self.test, self.batch_size, is_training=False)
