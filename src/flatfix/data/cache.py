"""Decode a version once, and keep the pixels in a memory-mapped file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flatfix.console import progress, say
from flatfix.data.splits import SPLITS, Fold, SplitRule, folds, quotas, rank, tally
from flatfix.data.version import DatasetVersion
from flatfix.errors import UserError, one_of
from flatfix.files import replacing
from flatfix.inference.decode import RESIZE_RULES, decode, resize

# Part of the file name: raise it when `decode` or `resize` changes a pixel, or the order of rows changes.
CACHE_VERSION = 1
CHUNK = 64  # pictures a thread decodes at a time


@dataclass(frozen=True, eq=False)
class Examples:
    """Hold one split, ready for a model.

    Attributes:
        inputs: `[N, H, W, 3]` uint8 pictures, memory-mapped, or `[N, D]` float32 features.
        labels: `[N]` int64, positions in the manifest's classes.
        ids: of the pictures.
        split: train, val or test.
        targets: `[N, C]` float32 probabilities, None where a picture has no soft label.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    ids: list[str]
    split: str
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.ids)

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Examples:
        """Return these rows, in this order, copied into memory."""
        rows = np.asarray(indices, dtype=np.int64)
        targets = None if self.targets is None else self.targets[rows]
        return Examples(self.inputs[rows], self.labels[rows], [self.ids[row] for row in rows], self.split, targets)


def decoded(
    version: DatasetVersion,
    split: str,
    *,
    image_size: int,
    resize: str,
    cache_dir: Path,
    fold: Fold | None = None,
) -> Examples:
    """Return a split as pictures of `image_size` x `image_size`, decoding them only the first time.

    With a fold, the version's train and val pictures are divided anew, as `splits.folds` does with the seed and the
    use of groups that the version was published with: that fold is val, the others are train, and test stays.

    The file is named by the version's digest, the split (and fold), the size and the resize rule, and appears when it
    is complete. Pixels are mapped copy-on-write: writing to them changes neither the file nor what others see.

    Raises:
        UserError: for a size, rule or split that does not exist, for a fold that the version has too few pictures
            for, and for a damaged version.
    """
    one_of("dataset.resize", resize, RESIZE_RULES)
    if image_size < 1:
        raise UserError(f"dataset.image_size={image_size}: must be at least 1.")
    rows = _rows(version, split, fold)
    place = split if fold is None or split == "test" else f"{split}-{_fold_name(version, fold)}"
    path = cache_dir / f"{version.manifest.digest[:32]}-{place}-{image_size}-{resize}-v{CACHE_VERSION}.npy"
    if (pixels := load_array(path)) is None:
        _build(version, split, rows, image_size, resize, path)
        pixels = np.load(path, mmap_mode="c")
    code = {name: label for label, name in enumerate(version.manifest.classes)}
    labels = np.array([code[row["label"]] for row in rows], dtype=np.int64)
    targets = [row["target"] for row in rows]
    soft = np.array(targets, dtype=np.float32) if targets and None not in targets else None
    return Examples(pixels, labels, [row["id"] for row in rows], split, soft)


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
    members = [np.flatnonzero(examples.labels == label).tolist() for label in np.unique(examples.labels)]
    kept: list[int] = []
    for rows, quota in zip(members, quotas([len(rows) for rows in members], fraction), strict=True):
        kept += sorted(rows, key=lambda row: rank(examples.ids[row], seed))[:quota]
    if not kept:
        raise UserError(f"dataset.sample_fraction={fraction}: leaves none of {len(examples)} pictures.")
    return examples.select(sorted(kept))


def _rows(version: DatasetVersion, split: str, fold: Fold | None) -> list[dict[str, Any]]:
    """Return the index rows of a split, in an order that depends on nothing but the ids.

    Versions with the same digest share a cache file, whatever order their indices have.
    """
    one_of("split", split, SPLITS)
    columns = ["id", "split", "label", "target", "shard", "offset", "length"]
    index = _index(version, fold).select(columns).filter(pc.field("split") == split)
    return sorted(index.to_pylist(), key=lambda row: rank(row["id"]))


def _index(version: DatasetVersion, fold: Fold | None) -> pa.Table:
    """Return the version's index, with the splits that the fold makes of train and val."""
    index = version.index()
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


def _build(
    version: DatasetVersion, split: str, rows: Sequence[dict[str, Any]], size: int, rule: str, path: Path
) -> None:
    """Decode in threads (Pillow releases the GIL) into a temporary file beside `path`, then rename it."""
    shards = {name: np.memmap(version.shard(name), mode="r") for name in sorted({row["shard"] for row in rows})}

    def fill(start: int) -> int:
        stop = min(start + CHUNK, len(rows))
        for place, row in enumerate(rows[start:stop], start):
            data = shards[row["shard"]][row["offset"] : row["offset"] + row["length"]]
            pixels[place] = resize(decode(data.tobytes()), size, rule)
        return stop - start

    with replacing(path) as partial:
        pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(rows), size, size, 3))
        with ThreadPoolExecutor() as pool, progress(f"Decoding {split}", len(rows)) as advance:
            for count in pool.map(fill, range(0, len(rows), CHUNK)):
                advance(count)
        pixels.flush()
