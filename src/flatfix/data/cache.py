"""Decode a version once and keep the pixels in a memory-mapped file, or leave them encoded where that has no room."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flatfix.console import progress, say
from flatfix.data.encoded import EncodedPictures
from flatfix.data.splits import SPLITS, Fold, SplitRule, folds, ranked, share, tally
from flatfix.data.version import DatasetVersion
from flatfix.errors import UserError, one_of
from flatfix.files import needing_room, replacing
from flatfix.inference.decode import RESIZE_RULES

# Part of the file name: raise it when `load` comes to give other pixels, or the order of rows changes.
CACHE_VERSION = 2
PART_OF_FREE = 0.9  # of what the disk has free, the most that the pixels of a split take


@dataclass(frozen=True, eq=False)
class Examples:
    """Hold one split, ready for a model.

    Attributes:
        inputs: `[N, H, W, 3]` uint8 pictures, memory-mapped or still encoded, or `[N, D]` float32 features.
        labels: `[N]` int64, positions in the manifest's classes.
        ids: of the pictures.
        split: train, val or test.
        targets: `[N, C]` float32 probabilities, None where a picture has no soft label.
    """

    inputs: NDArray[Any] | EncodedPictures
    labels: NDArray[np.int64]
    ids: list[str]
    split: str
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.ids)

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Examples:
        """Return these rows, in this order, copied into memory if they are decoded."""
        rows = np.asarray(indices, dtype=np.int64)
        inputs = self.inputs.select(rows) if isinstance(self.inputs, EncodedPictures) else self.inputs[rows]
        targets = None if self.targets is None else self.targets[rows]
        return Examples(inputs, self.labels[rows], [self.ids[row] for row in rows], self.split, targets)


def decoded(
    version: DatasetVersion,
    split: str,
    *,
    image_size: int,
    resize: str,
    cache_dir: Path,
    fold: Fold | None = None,
    gigabytes: float | None = None,
) -> Examples:
    """Return a split as pictures of `image_size` x `image_size`, decoding them only the first time.

    With a fold, the version's train and val pictures are divided anew, as `splits.folds` does with the seed and the
    use of groups that the version was published with: that fold is val, the others are train, and test stays.

    The file is named by the version's digest, the split (and fold), the size and the resize rule, and appears when it
    is complete. Pixels are mapped copy-on-write: writing to them changes neither the file nor what others see. Where
    they would take more than so many gigabytes, or nine tenths of what the disk has free, there will be no file, and
    pictures are decoded whenever they are read.

    Raises:
        UserError: for a size, rule or split that does not exist, for a fold that the version has too few pictures
            for, and for a damaged version.
    """
    one_of("dataset.resize", resize, RESIZE_RULES)
    if image_size < 1:
        raise UserError(f"dataset.image_size={image_size}: must be at least 1.")
    place = split if fold is None or split == "test" else f"{split}-{_fold_name(version, fold)}"
    path = cache_dir / f"{version.manifest.digest[:32]}-{place}-{image_size}-{resize}-v{CACHE_VERSION}.npy"
    index = _rows(version, split, fold)
    encoded = _encoded(version, index, image_size, resize)
    return Examples(
        inputs=_pixels(encoded, path, split, gigabytes),
        labels=_positions(index["label"], version.manifest.classes),
        ids=encoded.ids,
        split=split,
        targets=_targets(index["target"], len(version.manifest.classes)),
    )


def counts(version: DatasetVersion, fold: Fold | None = None) -> Mapping[str, Mapping[str, int]]:
    """Return the number of pictures of each class for each split, which are other ones with a fold.

    Raises:
        UserError: as `decoded` does for a fold.
    """
    if fold is None:
        return version.manifest.splits
    index = _index(version, fold)
    pairs = zip(index["split"].to_pylist(), index["label"].to_pylist(), strict=True)
    return tally(pairs, version.manifest.classes)


def load_array(path: Path) -> NDArray[Any] | None:
    """Map an array of the cache copy-on-write; None where there is none, or where the file was cut short."""
    try:
        return np.load(path, mmap_mode="c")  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None
    except (ValueError, EOFError) as error:
        say(f"{path}: damaged ({error}), made anew")
        return None


def sample(examples: Examples, fraction: float, seed: int) -> Examples:
    """Return a seeded part of the examples with the same share of every class, in their order.

    Raises:
        UserError: for a fraction outside (0, 1], or one that leaves nothing.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"dataset.sample_fraction={fraction}: must be above 0 and at most 1.")
    if fraction == 1:
        return examples
    kept = share(examples.ids, examples.labels, fraction, seed)
    if not kept:
        raise UserError(f"dataset.sample_fraction={fraction}: leaves none of {len(examples)} pictures.")
    return examples.select(kept)


def _rows(version: DatasetVersion, split: str, fold: Fold | None) -> pa.Table:
    """Return the index rows of a split, in an order that depends on nothing but the ids.

    Versions with the same digest share a cache file, whatever order their indices have. It is the order in which
    `publish` writes pictures into shards.
    """
    one_of("split", split, SPLITS)
    index = _index(version, fold).filter(pc.field("split") == split)
    return index.take(pa.array(ranked(index["id"].to_pylist())))


def _index(version: DatasetVersion, fold: Fold | None) -> pa.Table:
    """Return the version's index, with the splits that the fold makes of train and val."""
    index = version.index(["id", "split", "label", "target", "group", "shard", "offset", "length"])
    if fold is None:
        return index
    pool = index.filter(pc.field("split") != "test").select(["id", "label", "group"]).to_pydict()
    fold_of = folds(list(zip(*pool.values(), strict=True)), fold.num_folds, _rule(version))
    splits = {id: "val" if number == fold.index else "train" for id, number in fold_of.items()}
    anew = [splits.get(id, "test") for id in index["id"].to_pylist()]
    return index.set_column(index.schema.get_field_index("split"), "split", pa.array(anew, pa.string()))


def _rule(version: DatasetVersion) -> SplitRule:
    source: Mapping[str, Any] = version.manifest.source
    return SplitRule(seed=source["split.seed"], groups=source["split.groups"])


def _fold_name(version: DatasetVersion, fold: Fold) -> str:
    """Name all that folds depend on: versions with the same digest may have another rule."""
    rule = _rule(version)
    return f"fold-{fold.index}-of-{fold.num_folds}-{rule.groups}-{rule.seed}"


def _encoded(version: DatasetVersion, index: pa.Table, size: int, rule: str) -> EncodedPictures:
    return EncodedPictures(
        version,
        ids=index["id"].to_pylist(),
        shards=_positions(index["shard"], [shard.name for shard in version.manifest.shards]),
        offsets=index["offset"].to_numpy(),
        lengths=index["length"].to_numpy(),
        size=size,
        resize=rule,
    )


def _positions(names: pa.ChunkedArray, among: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of each name."""
    positions: NDArray[np.int64] = pc.index_in(names, pa.array(among, pa.string())).to_numpy().astype(np.int64)
    return positions


def _targets(column: pa.ChunkedArray, num_classes: int) -> NDArray[np.float32] | None:
    """Return soft labels `[N, C]`, or None where a picture lacks them."""
    if column.null_count or not len(column):
        return None
    targets: NDArray[np.float32] = pc.list_flatten(column).to_numpy().astype(np.float32).reshape(-1, num_classes)
    return targets


def _pixels(
    encoded: EncodedPictures, path: Path, split: str, gigabytes: float | None
) -> NDArray[np.uint8] | EncodedPictures:
    """Map the pixels from their file, which is made where it is missing and has room; otherwise leave them encoded."""
    if (pixels := load_array(path)) is not None:
        return pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    room = PART_OF_FREE * shutil.disk_usage(path.parent).free
    if gigabytes is not None:
        room = min(room, gigabytes * 1e9)
    if (needed := math.prod(encoded.shape)) > room:
        say(
            f"{split}: decoded when read, for its pixels take {needed / 1e6:,.1f} MB ({room / 1e6:,.1f} MB may be used)"
        )
        return encoded
    with replacing(path) as partial:
        pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=encoded.shape)
        _take_room(partial, split)
        with progress(f"Decoding {split}", len(encoded)) as advance:
            encoded.decode_into(pixels, np.arange(len(encoded)), advance)
        pixels.flush()
    return np.load(path, mmap_mode="c")  # type: ignore[no-any-return]


def _take_room(path: Path, split: str) -> None:
    """Have the disk give all that the file is long: to run out of it in mapped memory would kill the process."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    what = f"the pixels of {split} in {path.parent}"
    fix = "Free some, name another folder, or set dataset.decoded_gigabytes=0 to decode them whenever they are read."
    with path.open("r+b") as file, needing_room("paths.cache", what, fix):
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
