"""Hand out whole batches: one gather a batch instead of one call a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from flatfix.data.cache import Examples
from flatfix.data.encoded import WINDOW, EncodedPictures
from flatfix.errors import UserError

HOST = torch.device("cpu")
PART_OF_GPU = 0.25  # of a GPU's free memory, the most that examples take; the rest is for what learns from them


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

    In training the order is shuffled, depends only on the seed and the epoch, and an incomplete last batch is dropped
    if there is a whole one. With `is_balanced`, every class comes equally often in an epoch of the same length: the
    examples of a rare class several times, those of a frequent one in part. Pictures that are still encoded are mixed
    among those of a few shards at a time. In evaluation every example comes once, in order.

    Of several ranks each has as many batches as the others: in training its part of each batch that one process would
    have, were its batches so many times as large; in evaluation its part of the order. With the state of a loader
    that stopped in the middle of an epoch, another goes on with the batch after the last one that was handed out.

    Examples that are decoded may be kept on a device, where their batches are then made: in an epoch nothing but the
    order of the rows is sent there.
    """

    batch_sampler = None  # Lightning asks for it of whatever has a sampler

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        *,
        is_training: bool,
        is_balanced: bool = False,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        device: torch.device = HOST,
    ) -> None:
        """Keep the examples; nothing is read yet, unless for another device.

        Raises:
            UserError: when there are fewer training examples than ranks.
        """
        if is_training and 0 < len(examples) < num_ranks:
            raise UserError(
                f"trainer.devices: {num_ranks} devices are too many for {len(examples)} training pictures. Use fewer."
            )
        self.batch_size = batch_size
        self._examples = examples
        inputs, targets = examples.inputs, examples.targets
        self._inputs = inputs if isinstance(inputs, EncodedPictures) else torch.from_numpy(inputs).to(device)
        self._labels = torch.from_numpy(examples.labels).to(device)
        self._targets = None if targets is None else torch.from_numpy(targets).to(device)
        self._device = device
        self._is_training = is_training
        self._is_balanced = is_balanced
        self._seed = seed
        self._rank = rank
        self._num_ranks = num_ranks
        self._epoch = 0
        self._num_batches = 0  # of the epoch that were handed out
        self._is_resumed = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        if epoch != self._epoch:
            self._epoch, self._num_batches, self._is_resumed = epoch, 0, False

    @property
    def sampler(self) -> BatchLoader:
        """Itself: Lightning tells `loader.sampler` the epoch."""
        return self

    def state_dict(self) -> dict[str, int | str]:
        """Return the epoch, how many of its batches were handed out, and what else the order depends on."""
        return {"epoch": self._epoch, "num_batches": self._num_batches, **self._layout()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration be the rest of that epoch; what was handed out is not decoded again.

        Raises:
            UserError: when the rest of the epoch would not be the rest here.
        """
        for name, here in self._layout().items():
            if state[name] != here:
                raise UserError(f"{name}={here}: the epoch to go on with began with {state[name]}. Set it back.")
        self._epoch, self._num_batches, self._is_resumed = state["epoch"], state["num_batches"], True

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        if self._is_training:
            whole, rest = divmod(len(self._labels) // self._num_ranks, self.batch_size)
            return whole or min(rest, 1)
        return -(-len(self._labels) // (self._num_ranks * self.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches of copies, which may be changed in place."""
        start = self._num_batches if self._is_resumed else 0
        self._is_resumed = False
        batches = self._batches()[start:]
        for number, (rows, inputs) in enumerate(zip(batches, self._read(batches), strict=True), start + 1):
            self._num_batches = number
            targets = None if self._targets is None else self._targets[rows]
            yield Batch(inputs, self._labels.index_select(0, rows), rows, targets)

    def _layout(self) -> dict[str, int | str]:
        """Return what the order depends on beside the epoch."""
        is_streamed = isinstance(self._inputs, EncodedPictures) and len(np.unique(self._inputs.shards)) > WINDOW
        return {
            "number of pictures": len(self._labels),
            "digest of ids and labels": self._digest,
            "dataset.batch_size": self.batch_size,
            "seed": self._seed,
            "dataset.sampler": "balanced" if self._is_balanced else "plain",
            "number of devices": self._num_ranks,
            "streamed (see dataset.decoded_gigabytes)": int(is_streamed),
        }

    @cached_property
    def _digest(self) -> str:
        names = "\n".join(self._examples.ids).encode()
        return hashlib.sha256(names + self._examples.labels.tobytes()).hexdigest()[:12]

    def _read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        if isinstance(self._inputs, EncodedPictures):
            return map(torch.from_numpy, self._inputs.batches([rows.numpy() for rows in batches]))
        inputs = self._inputs
        return (inputs.index_select(0, rows) for rows in batches)

    def _batches(self) -> Sequence[Tensor]:
        """Return the rows of each batch of this rank."""
        order = self._order().to(self._device)
        if self._is_training:
            size = min(self.batch_size, len(order) // self._num_ranks)
            batches: Sequence[Tensor] = order.split(size)
            return batches[self._rank :: self._num_ranks][: len(self)]
        part = order.tensor_split(self._num_ranks)[self._rank]
        batches = part.split(self.batch_size)[: len(self)]
        # A rank that has one example less may lack a whole batch, for which the others would wait for ever.
        return batches if len(batches) == len(self) else part.tensor_split(len(self))

    def _order(self) -> Tensor:
        """Return the rows of the epoch."""
        count = len(self._labels)
        if not self._is_training:
            return torch.arange(count)
        draw = generator(self._seed, self._epoch)
        order = torch.randperm(count, generator=draw)
        if self._is_balanced:
            order = self._balanced(draw)[order]
        if isinstance(self._inputs, EncodedPictures):
            held, shards = torch.from_numpy(self._inputs.shards).unique(return_inverse=True)
            windows = torch.randperm(len(held), generator=draw) // WINDOW
            order = order[windows[shards[order]].argsort(stable=True)]
        return order

    def _balanced(self, draw: torch.Generator) -> Tensor:
        """Return as many rows as there are, the same number of each class (or one more), class by class.

        Each class goes round in whole permutations: its own examples come equally often too, give or take one.
        """
        labels = torch.from_numpy(self._examples.labels)
        classes = labels.unique()
        rows = []
        for label, share in zip(classes, torch.arange(len(labels)).tensor_split(len(classes)), strict=True):
            members = torch.nonzero(labels == label).flatten()
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

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch to the device, where it is not made there; Lightning would look through it for tensors."""
        if batch.inputs.device == device:
            return batch
        inputs, labels, indices = (each.to(device, non_blocking=True) for each in batch[:3])
        targets = batch.targets if batch.targets is None else batch.targets.to(device, non_blocking=True)
        return Batch(inputs, labels, indices, targets)

    def train_dataloader(self) -> BatchLoader:
        """Return shuffled batches of the train split, balanced if that was asked for."""
        return self._loader(self.train, is_training=True)

    def val_dataloader(self) -> BatchLoader:
        """Return the val split in order."""
        return self._loader(self.val, is_training=False)

    def test_dataloader(self) -> BatchLoader:
        """Return the test split in order."""
        return self._loader(self.test, is_training=False)

    def _loader(self, examples: Examples, *, is_training: bool) -> BatchLoader:
        return BatchLoader(
            examples,
            self.batch_size,
            is_training=is_training,
            is_balanced=is_training and self.is_balanced,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            num_ranks=self.trainer.world_size if self.trainer else 1,
            device=self._device(examples) if is_training else HOST,
        )

    def _device(self, examples: Examples) -> torch.device:
        """Return where training examples are kept."""
        if not self.trainer or isinstance(examples.inputs, EncodedPictures):
            return HOST
        device = self.trainer.strategy.root_device
        return device if has_room(device, examples.inputs.nbytes) else HOST


def has_room(device: torch.device, num_bytes: int) -> bool:
    """Tell whether a device is a GPU with room for so many bytes of examples beside what learns from them."""
    return device.type == "cuda" and num_bytes <= PART_OF_GPU * torch.cuda.mem_get_info(device)[0]
