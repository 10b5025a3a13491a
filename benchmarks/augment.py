"""Throughput of augmentation on the batch beside torchvision's transforms on each picture in a DataLoader.

Both take the same shuffled uint8 pictures from memory and hand out augmented uint8 batches, in turns within one run:
ours with the threads of the processor, torchvision with worker processes.

    python benchmarks/augment.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from flatfix.tracking.provenance import Provenance
from flatfix.training.augment import Augment, Cifar, Inspection, Trivial

SEED = 0


class Pair(NamedTuple):
    """Hold an augmentation of ours and what torchvision has for it."""

    ours: Augment
    theirs: v2.Transform
    size: int
    num_pictures: int
    batch_size: int


PAIRS = {
    "cifar, 32 pixels": Pair(
        Cifar(padding=4), v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]), 32, 6_400, 128
    ),
    "trivial, 32 pixels": Pair(
        Trivial(padding=4),
        v2.Compose([v2.TrivialAugmentWide(), v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]),
        32,
        6_400,
        128,
    ),
    "trivial, 224 pixels": Pair(
        Trivial(), v2.Compose([v2.TrivialAugmentWide(), v2.RandomHorizontalFlip()]), 224, 640, 64
    ),
    "inspection, 224 pixels": Pair(
        Inspection(),
        v2.Compose(
            [
                v2.RandomVerticalFlip(),
                v2.RandomHorizontalFlip(),
                v2.RandomRotation(30, interpolation=v2.InterpolationMode.BILINEAR),
                v2.ColorJitter(0.2, 0.2, 0.2),
            ]
        ),
        224,
        640,
        64,
    ),
}


class PictureByPicture(Dataset[Tensor]):
    """Transform one picture at a time."""

    def __init__(self, pictures: Tensor, transform: v2.Transform) -> None:
        self.pictures = pictures
        self.transform = transform

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.pictures)

    def __getitem__(self, row: int) -> Tensor:
        """Return one picture, transformed."""
        return self.transform(self.pictures[row])


def draw(count: int, size: int) -> Tensor:
    """Draw `[N, H, W, 3] uint8` smooth pictures."""
    blotches = 255 * torch.rand(count, 3, 8, 8, generator=Generator().manual_seed(SEED))
    grown = (F.interpolate(some, size=(size, size), mode="bicubic") for some in blotches.split(64))
    return torch.cat([some.clamp(0, 255).byte() for some in grown]).permute(0, 2, 3, 1).contiguous()


def on_batches(pictures: Tensor, pair: Pair, generator: Generator) -> Iterator[Tensor]:
    """Augment whole batches."""
    for rows in torch.randperm(len(pictures), generator=generator).split(pair.batch_size):
        yield pair.ours(pictures.index_select(0, rows), generator)


def rate(epoch: Callable[[], Iterable[Tensor]], seconds: float = 0.5) -> float:
    """Return pictures a second over whole epochs; each batch is touched, so that nothing stays lazy."""
    start, count, total = time.perf_counter(), 0, 0
    while time.perf_counter() < start + seconds:
        for images in epoch():
            count += len(images)
            total += int(images[0, 0, 0, 0])
    return count / (time.perf_counter() - start)


def measure(pair: Pair, rounds: int, workers: int) -> dict[str, list[float]]:
    """Return the rates of both, in turns; a first round of each is not counted."""
    pictures, generator = draw(pair.num_pictures, pair.size), Generator().manual_seed(SEED)
    loader = DataLoader(
        PictureByPicture(pictures.permute(0, 3, 1, 2).contiguous(), pair.theirs),
        batch_size=pair.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,  # starting them is not what is measured
    )
    epochs: dict[str, Callable[[], Iterable[Tensor]]] = {
        "flatfix": lambda: on_batches(pictures, pair, generator),
        "torchvision": lambda: loader,
    }
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for number in range(rounds + 1):
        for name, epoch in epochs.items():
            speed = rate(epoch)
            if number:
                rates[name].append(speed)
    return rates


def main() -> None:
    """Measure, print the table, and write it as JSON beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    # As in training, where tensors of every size have been freed: from then on, malloc keeps memory for the next batch.
    torch.ones(31 * 2**20, dtype=torch.uint8)
    rates = {name: measure(pair, options.rounds, options.workers) for name, pair in PAIRS.items()}
    machine = Provenance.collect(Path(__file__).parent, ["torch", "torchvision"])
    print(f"\n{machine.cpu}, {torch.get_num_threads()} threads or {options.workers} workers; {options.rounds} rounds")
    print(f"torch {machine.packages['torch']}, torchvision {machine.packages['torchvision']}, seed {SEED}\n")
    print(f"{'median pictures/s':26}{'flatfix':>12}{'torchvision':>14}{'ratio':>9}{'of the rounds':>18}")
    for name, sides in rates.items():
        ours, theirs = (statistics.median(values) for values in sides.values())
        ratios = [mine / other for mine, other in zip(*sides.values(), strict=True)]
        print(f"{name:26}{ours:12,.0f}{theirs:14,.0f}{ours / theirs:9.1f}{min(ratios):10.1f} to {max(ratios):.1f}")
    facts = {
        "cpu": machine.cpu,
        "num_threads": torch.get_num_threads(),
        "num_workers": options.workers,
        "packages": machine.packages,
        "seed": SEED,
        "batch_size": {name: pair.batch_size for name, pair in PAIRS.items()},
        "num_pictures": {name: pair.num_pictures for name, pair in PAIRS.items()},
        "pictures_per_s": rates,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
