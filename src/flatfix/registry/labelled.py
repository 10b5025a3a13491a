"""The pictures that a registered model is judged on: a split of a dataset version, or files with labels."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flatfix.data.cache import decoded
from flatfix.data.encoded import CHUNK, EncodedPictures
from flatfix.data.splits import share
from flatfix.data.version import DatasetVersion
from flatfix.errors import UserError, did_you_mean
from flatfix.inference.card import Card

if TYPE_CHECKING:
    from flatfix.data.unlabelled import Unlabelled

NUM_AHEAD = 256  # pictures in files that are decoded while the model is busy

Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FilePictures:
    """Stand for an array `[N, size, size, 3]` uint8 of pictures in files, which are decoded whenever they are read."""

    files: Unlabelled
    size: int
    resize: str

    def __getitem__(self, rows: Rows) -> NDArray[np.uint8]:
        """Decode the pictures of these rows, which can be read."""
        return np.stack([picture for picture in self.select(rows).each() if not isinstance(picture, str)])

    def select(self, rows: Rows) -> FilePictures:
        """Return these rows, in this order; nothing is decoded."""
        return replace(self, files=replace(self.files, paths=[self.files.paths[row] for row in rows]))

    def each(self) -> Generator[NDArray[np.uint8] | str, None, None]:
        """Yield each picture, or why it cannot be read."""
        return self.files.decoded(self.size, self.resize, NUM_AHEAD)


@dataclass(frozen=True, eq=False)
class LabelledPictures:
    """Hold pictures, and the class of each as the model numbers it.

    Attributes:
        name: what they are called.
        ids: `[N]` those of the dataset version, or paths.
        labels: `[N]` positions in the model's classes.
        pixels: `[N, size, size, 3]` uint8, or what stands for them.
        facts: what they are, by name.
        is_whole: whether they are all of a split of a dataset version.
    """

    name: str
    ids: list[str]
    labels: NDArray[np.int64]
    pixels: NDArray[np.uint8] | EncodedPictures | FilePictures
    facts: Mapping[str, str]
    is_whole: bool = False

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.ids)

    def select(self, rows: Rows) -> LabelledPictures:
        """Return these rows, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        pixels = self.pixels[rows] if isinstance(self.pixels, np.ndarray) else self.pixels.select(rows)
        ids = [self.ids[row] for row in rows]
        return replace(self, ids=ids, labels=self.labels[rows], pixels=pixels, is_whole=False)

    def limited(self, limit: int | None, seed: int) -> LabelledPictures:
        """Return a seeded share of every class, at most `limit` pictures in all."""
        if limit is None or limit >= len(self):
            return self
        kept = self.select(share(self.ids, self.labels, limit / len(self), seed))
        return replace(kept, facts={**self.facts, "limit": f"{limit} of {len(self)}, seed {seed}"})

    def each(self) -> Generator[NDArray[np.uint8] | str, None, None]:
        """Yield each picture `[size, size, 3]`, or why it cannot be read."""
        if isinstance(self.pixels, FilePictures):
            yield from self.pixels.each()
        elif isinstance(self.pixels, EncodedPictures):
            rows = np.arange(len(self))
            for batch in self.pixels.batches([rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]):
                yield from batch
        else:
            yield from self.pixels


def of_version(
    dataset: DatasetVersion, split: str, card: Card, cache_dir: Path, *, gigabytes: float | None = None
) -> LabelledPictures:
    """Return a split as the model of `card` takes it.

    Args:
        dataset: the version.
        split: train, val or test.
        card: of the model.
        cache_dir: where training keeps decoded pictures.
        gigabytes: see `data.cache.decoded`.

    Raises:
        UserError: for a class that the model does not know, a split without pictures and a damaged version.
    """
    manifest = dataset.manifest
    name = f"{manifest.name} {manifest.version} {split}"
    present = [label for label in manifest.classes if manifest.splits[split].get(label)]
    if not present:
        raise UserError(f"split={split}: no picture in {manifest.name} {manifest.version}.")
    _check_classes(f"dataset.name={manifest.name} dataset.version={manifest.version}", present, card)
    examples = decoded(
        dataset,
        split,
        image_size=card.image_size,
        resize=card.resize,
        cache_dir=cache_dir,
        gigabytes=gigabytes,
    )
    position = {label: index for index, label in enumerate(card.classes)}
    own = np.array([position.get(label, -1) for label in manifest.classes], dtype=np.int64)
    facts = {
        "dataset_name": manifest.name,
        "dataset_version": manifest.version,
        "dataset_digest": manifest.digest,
        "split": split,
    }
    return LabelledPictures(name, examples.ids, own[examples.labels], examples.inputs, facts, is_whole=True)


def of_files(source: str, card: Card) -> LabelledPictures:
    """Return the pictures that the option `data` names, as the model of `card` takes them.

    Raises:
        UserError: as `find_labelled` does, and for a class that the model does not know.
    """
    # These import boto3, which takes half a second.
    from flatfix.data.labelled import find_labelled
    from flatfix.data.unlabelled import printable

    found = find_labelled(source)
    _check_classes(f"data={source}", sorted(set(found.labels)), card)
    position = {label: index for index, label in enumerate(card.classes)}
    labels = np.array([position[label] for label in found.labels], dtype=np.int64)
    pixels = FilePictures(found.files, card.image_size, card.resize)
    return LabelledPictures(source, [printable(path) for path in found.files.paths], labels, pixels, {"data": source})


def _check_classes(option: str, names: Sequence[str], card: Card) -> None:
    unknown = [name for name in names if name not in card.classes]
    if unknown:
        raise UserError(
            f"{option}: has pictures of {', '.join(unknown)}, which the model does not know. It knows "
            f"{', '.join(card.classes)}.{did_you_mean(unknown[0], card.classes)}"
        )
