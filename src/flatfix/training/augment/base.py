"""What an augmentation is, and the steps that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor


class Augment(Protocol):
    """Vary a batch of pictures."""

    changes_pictures: bool

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return varied copies of `[N, H, W, 3] uint8` pictures."""


@runtime_checkable
class Recurring(Protocol):
    """Vary a picture by what was done to it in the epochs before."""

    def vary(self, images: Tensor, generator: Generator, rows: Tensor, epoch: int) -> Tensor:
        """Return varied copies of `[N, H, W, 3] uint8` pictures, which are the rows `[N]` of the split."""


class Identity:
    """Leave the pictures as they are."""

    changes_pictures = False

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return `images`."""
        return images


def toss(count: int, generator: Generator) -> Tensor:
    """Toss `[count]` fair coins."""
    return torch.rand(count, generator=generator) < 0.5


def to_device(numbers: Tensor, images: Tensor) -> Tensor:
    """Return numbers that were drawn on the CPU on the device of `images`, without waiting for what that works on."""
    # CUDA has copied the numbers to a buffer of its own when the call returns, so they may be freed or changed then.
    # Apple's GPUs read them later (https://github.com/pytorch/pytorch/issues/83015).
    return numbers.to(images.device, non_blocking=images.is_cuda)


def per_picture(values: Tensor, images: Tensor) -> Tensor:
    """Shape `[N]` numbers as `[N, 1, 1, 1]`, on the device of `images`."""
    return to_device(values.view(-1, 1, 1, 1), images)


def change_by_group(
    images: Tensor, groups: Tensor, changes: Sequence[Callable[..., Tensor]], *numbers: Tensor
) -> Tensor:
    """Apply `changes[k]` to the pictures of group k, all at once.

    Args:
        images: `[N, H, W, 3] uint8`.
        groups: `[N] int64` on the CPU.
        changes: each maps the pictures of its group, and their part of `numbers`, to pictures of their shape and type.
        numbers: `[N]` on the CPU.
    """
    order = groups.argsort(stable=True)
    counts = groups.bincount(minlength=len(changes)).tolist()
    # Whole pictures move by index_select alone: on the CPU it is twenty times as fast as index_copy.
    changed = [
        change(images.index_select(0, to_device(rows, images)), *(number[rows] for number in numbers))
        for change, rows in zip(changes, order.split(counts), strict=True)
        if len(rows)
    ]
    return torch.cat(changed).index_select(0, to_device(order.argsort(), images))


def flip(images: Tensor, axis: int, coins: Tensor) -> Tensor:
    """Mirror the pictures whose coin `[N] bool` says so: top to bottom for axis 1, left to right for axis 2."""
    return change_by_group(images, coins.long(), [keep, lambda mirrored: mirrored.flip(axis)])


def keep(images: Tensor, *numbers: Tensor) -> Tensor:
    """Return the pictures as they are: a change for `change_by_group`."""
    return images


def rectangles(images: Tensor, heights: Tensor, widths: Tensor, generator: Generator) -> Tensor:
    """Lay a rectangle of `[N]` heights and widths on each picture, centred on a pixel that is drawn evenly.

    Returns:
        `[N, H, W, 3] uint8`, 1 in the rectangle and 0 outside; what sticks out of the picture is lost.
    """
    sides = []
    for size, lengths in zip(images.shape[1:3], (heights, widths), strict=True):
        starts = torch.randint(size, lengths.shape, generator=generator) - lengths // 2
        starts, ends = to_device(starts[:, None], images), to_device((starts + lengths)[:, None], images)
        places = torch.arange(size, device=images.device)
        sides.append(((places >= starts) & (places < ends)).to(torch.uint8))
    rows, columns = sides
    # Repeated for the channels, the columns meet the rows in long runs of memory.
    return rows[:, :, None, None] * columns[:, None, :, None].repeat(1, 1, 1, images.shape[3])


def overlay(images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """Return the pixels of `others` where `mask` is 1 and those of `images` where it is 0; all of them are uint8."""
    # Bytes add modulo 256, so this is exact, and on the CPU several times as fast as torch.where.
    return images + (others - images) * mask
