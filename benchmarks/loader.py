"""Epoch throughput of the DataModule beside torchvision's ImageFolder with a DataLoader, and beside a tensor in memory.

All read the same CIFAR-10 training pictures and yield batches `[N, H, W, 3] uint8` and labels, in turns within one run.
What publishing and decoding cost ours, once, is printed apart. Needs a folder of CIFAR-10 pictures:

    python benchmarks/loader.py --root /data/cifar10/train
"""

from __future__ import annotations

import argparse
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from flatfix.data.cache import Examples, decoded
from flatfix.data.datamodule import BatchLoader
from flatfix.data.publish import publish
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version
from flatfix.tracking.provenance import Provenance

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "cifar10.tar.xz"
SEED = 0


def in_memory(images: Tensor, labels: Tensor, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Select rows of a tensor in memory by a shuffled order: the fastest that plain PyTorch does."""
    order = torch.randperm(len(images))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        yield images.index_select(0, rows), labels[rows]


def image_folder(root: Path, batch_size: int, workers: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Read one file a picture in worker processes, as most training scripts do."""
    return DataLoader(
        ImageFolder(str(root), transform=lambda picture: torch.from_numpy(np.array(picture))),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
    )


def rate(epoch: Callable[[], Iterable[tuple[Tensor, ...]]], seconds: float = 0.5) -> float:
    """Return pictures a second over whole epochs; each batch is touched, so that nothing stays lazy."""
    start, count, total = time.perf_counter(), 0, 0
    while time.perf_counter() < start + seconds:
        for images, *_ in epoch():
            count += len(images)
            total += int(images[0, 0, 0, 0])
    return count / (time.perf_counter() - start)


def unpacked(folder: Path, parser: argparse.ArgumentParser) -> Path:
    """Unpack CIFAR-10 and return the folder of its training pictures; end the benchmark where there is no archive."""
    if not ARCHIVE.is_file():
        parser.exit(0, f"skipped: no {ARCHIVE}; name a folder with --root\n")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder / "cifar10", filter="data")
    return folder / "cifar10" / "train"


def prepare(root: Path, folder: Path) -> tuple[Examples, float]:
    """Publish the pictures and decode them; return the examples and the seconds it took."""
    start = time.perf_counter()
    store = LocalStore(folder / "store")
    publish(FolderSource(str(root)), store, name="cifar10", version="v1", rule=SplitRule(0.1, 0.1))
    version = open_version(store, "cifar10", "v1")
    examples = decoded(version, "train", image_size=32, resize="squash", cache_dir=folder / "cache")
    return examples, time.perf_counter() - start


def main() -> None:
    """Measure, print the table, and write it as JSON beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="folder of class folders; the default unpacks " + str(ARCHIVE))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        measure(options.root or unpacked(folder, parser), folder, options)


def measure(root: Path, folder: Path, options: argparse.Namespace) -> None:
    """Run the rounds, peers and ours in turns."""
    torch.manual_seed(SEED)
    examples, prepared_s = prepare(root, folder)
    ours = BatchLoader(examples, options.batch_size, is_training=True, seed=SEED)
    images, labels = torch.from_numpy(np.array(examples.inputs)), torch.from_numpy(examples.labels)
    loaders: dict[str, Callable[[], Iterable[tuple[Tensor, ...]]]] = {
        "flatfix": lambda: ours,
        "tensor in memory": lambda: in_memory(images, labels, options.batch_size),
        "ImageFolder + DataLoader": lambda: image_folder(root, options.batch_size, options.workers),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    rate(loaders["flatfix"])  # the first epoch reads the cache from the disk
    for number in range(options.rounds):
        ours.set_epoch(number)
        # The order rotates, so that none always comes after the one that leaves the processor's caches cold.
        for shift in range(len(loaders)):
            name = list(loaders)[(number + shift) % len(loaders)]
            rates[name].append(rate(loaders[name]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\nCIFAR-10, {len(examples):,} pictures, batch {options.batch_size}, {options.rounds} rounds, seed {SEED}")
    machine = Provenance.collect(Path(__file__).parent, ["torch", "torchvision"])
    print(f"{machine.cpu}, {torch.get_num_threads()} threads; torch {machine.packages['torch']}")
    print(f"publishing and decoding, once: {prepared_s:.1f} s\n")
    print(f"{'':26}{'median pictures/s':>18}{'lowest':>12}{'highest':>12}{'ours / it':>11}")
    for name, values in rates.items():
        row = (medians[name], min(values), max(values), medians["flatfix"] / medians[name])
        print(f"{name:26}{row[0]:18,.0f}{row[1]:12,.0f}{row[2]:12,.0f}{row[3]:11.2f}")
    facts = {
        "cpu": machine.cpu,
        "num_threads": torch.get_num_threads(),
        "packages": machine.packages,
        "num_pictures": len(examples),
        "batch_size": options.batch_size,
        "seed": SEED,
        "prepared_s": prepared_s,
        "pictures_per_s": rates,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
