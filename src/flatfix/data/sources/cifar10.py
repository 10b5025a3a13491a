"""CIFAR-10: from a folder of pictures, or from the files that torchvision reads and can download."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from flatfix.data.sources.base import Record
from flatfix.data.sources.folder import ROOT, FolderSource
from flatfix.data.sources.tree import LocalTree, tree_at
from flatfix.errors import UserError

BATCHES = "cifar-10-batches-py"  # torchvision's folder


@dataclass(frozen=True)
class Cifar10Source:
    """Read 60,000 colour pictures 32x32 of ten classes, of which 10,000 are for test.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.

    Attributes:
        root: holds `train/<class>/<pictures>` and `test/<class>/<pictures>`, which are read as `FolderSource` reads
            them, or, on a disk, `cifar-10-batches-py`.
        download: whether torchvision downloads its files (170 MB) to a root that holds neither.
    """

    root: str | Path
    download: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in alphabetical order, which is CIFAR-10's own.

        Raises:
            UserError: for a root that holds neither form, whole, and cannot be filled by a download.
        """
        return self._form.classes

    @property
    def num_readers(self) -> int | None:
        """How many threads read best at a time."""
        return self._form.num_readers

    def records(self) -> list[Record]:
        """List the pictures.

        Raises:
            UserError: as for `classes`.
        """
        return self._form.records()

    def read(self, record: Record) -> bytes:
        """Return the bytes of one file, or torchvision's pixels as PNG, which loses nothing."""
        return self._form.read(record)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Name the folder."""
        return {"kind": "cifar10", "root": str(tree_at(self.root, ROOT))}

    @cached_property
    def _form(self) -> FolderSource | _Batches:
        tree = tree_at(self.root, ROOT)
        if isinstance(tree, LocalTree):
            folders = tree.folders() if tree.exists() else []
            if not folders or BATCHES in folders:
                return _Batches(tree.root, self.download)
        return FolderSource(self.root)


@dataclass(frozen=True)
class _Batches:
    """Read torchvision's files; an id ends in torchvision's index, as in `train/airplane/00029`."""

    root: Path
    download: bool
    num_readers = None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._splits["train"].classes)

    def records(self) -> list[Record]:
        return [
            Record(f"{split}/{self.classes[label]}/{index:05d}", self.classes[label], f"{split}/{index}", "png", split)
            for split, pictures in self._splits.items()
            for index, label in enumerate(pictures.targets)
        ]

    def read(self, record: Record) -> bytes:
        split, _, index = record.location.partition("/")
        buffer = io.BytesIO()
        Image.fromarray(self._splits[split].data[int(index)]).save(buffer, "PNG")
        return buffer.getvalue()

    @cached_property
    def _splits(self) -> dict[str, Any]:
        from torchvision.datasets import CIFAR10  # takes seconds, and a folder of pictures does without

        try:
            return {
                split: CIFAR10(self.root, train=split == "train", download=self.download) for split in ("train", "test")
            }
        except (RuntimeError, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> UserError:
        place = "a dataset.source.root that holds train/<class>/<pictures> and test/<class>/<pictures>"
        if self.download:
            return UserError(
                f"dataset.source.download=true: CIFAR-10 could not be downloaded to dataset.source.root={self.root} "
                f"({error}). Try again, unpack cifar-10-python.tar.gz there yourself, or name {place}."
            )
        return UserError(
            f"dataset.source.root={self.root}: no {BATCHES} in it, or not all of it ({error}). "
            f"Set dataset.source.download=true, or name {place}."
        )
