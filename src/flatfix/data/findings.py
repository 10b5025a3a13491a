"""What a reader should know of the pictures of a version, found before anything of it is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flatfix.data.index import Row
from flatfix.data.likeness import alike, num_bits
from flatfix.errors import UserError, enumerated

# Below this, one picture moves the recall of a class by more than ten points.
FEW_PICTURES = 10
NUM_NAMED = 5  # examples in a finding, which is one line

Copies = list[list[Row]]


def find_copies(index: pa.Table) -> Copies:
    """Return the rows of each picture that is there more than once, byte for byte, in other splits or labels."""
    return _divided(index, "sha256", ("split", "label"))


def refuse_copies_across_splits(copies: Copies) -> None:
    """Raise UserError, naming the first copies, when a picture is in more than one split, byte for byte."""
    across = _across_splits(copies)
    if across:
        raise UserError(
            f"dataset.source: pictures in more than one split, byte for byte: {len(across):,}. A model would be judged "
            f"on what it has learned, so nothing was published:{enumerated(across)}\n"
            "Remove the copies, give those of a picture one group (dataset.split.groups=keep), or set "
            "dataset.allow_duplicates=true to publish them as they are."
        )


def findings(
    index: pa.Table,
    copies: Copies,
    splits: Mapping[str, Mapping[str, int]],
    classes: Sequence[str],
    *,
    keeps_groups: bool,
) -> tuple[str, ...]:
    """Return a line for everything odd about an index.

    - Classes with no picture in a split that has others, or with fewer than `FEW_PICTURES`.
    - Copies, which are pictures of the same bytes, in more than one split or with more than one label.
    - Groups in more than one split, unless the split rule stratifies them, and so divides them on purpose.
    - Targets that are highest for another class than the label.

    Args:
        index: of the pictures.
        copies: that it has.
        splits: number of pictures of each class, for each split.
        classes: in label order.
        keeps_groups: whether the split rule keeps groups together.
    """
    parted = _divided(index, "group", ("split",)) if keeps_groups else []
    return (
        *_class_sizes(splits),
        *_finding("pictures in more than one split, byte for byte", _across_splits(copies)),
        *_finding(
            "pictures with more than one label, byte for byte",
            [_joined(each, "label") for each in copies if _differ(each, "label")],
        ),
        *_finding(
            "groups in more than one split",
            [f"{part[0]['group']} ({', '.join(sorted({row['split'] for row in part}))})" for part in parted],
        ),
        *_finding("targets that are highest for another class than the label", _odd_targets(index, classes)),
    )


def near_duplicates(index: pa.Table, hashes: NDArray[np.uint64]) -> list[str]:
    """Return one line that counts the pictures that look alike, those in different splits first, or none.

    Pairs of the same bytes are copies, and not among them.

    Args:
        index: of the pictures.
        hashes: `[N, 2]`, see `likeness.difference_hash`.
    """
    split, sha256 = _codes(index["split"]), _codes(index["sha256"])
    num = num_across = 0
    named = np.empty((0, 2), np.int64)
    for pairs in alike(hashes):
        pairs = pairs[np.diff(sha256[pairs])[:, 0] != 0]
        num += len(pairs)
        num_across += int(np.count_nonzero(np.diff(split[pairs])))
        named = np.concatenate([named, pairs])
        order = np.lexsort([*named.T[::-1], num_bits(hashes, named), np.diff(split[named])[:, 0] == 0])
        named = named[order[:NUM_NAMED]]
    of_named = {row: index.slice(row, 1).to_pylist()[0] for row in named.ravel().tolist()}
    cases = [" ~ ".join(f"{of_named[row]['id']} ({of_named[row]['split']})" for row in pair) for pair in named.tolist()]
    return _finding(f"pairs of pictures that look alike, {num_across:,} of them across splits", cases, num)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int32]:
    """Return a number for each value of a column, another for another value."""
    codes: NDArray[np.int32] = pc.rank(column, tiebreaker="dense").to_numpy().astype(np.int32)
    return codes


def _divided(index: pa.Table, same: str, different: Sequence[str]) -> list[list[Row]]:
    """Return the rows, by id, of each value of the column `same` that has several values in a column of `different`.

    Rows without a value in `same` are passed by.
    """
    some = index.select([same, "id", *different])
    if some[same].null_count:
        some = some.filter(pc.is_valid(some[same]))
    codes = _codes(some[same])
    is_divided = np.zeros(codes.max(initial=0) + 1, bool)
    representative = np.empty_like(codes, shape=is_divided.shape)
    for column in different:
        values = _codes(some[column])
        representative[codes] = values
        is_divided[codes[values != representative[codes]]] = True
    few = some.filter(pa.array(is_divided[codes])).sort_by([(same, "ascending"), ("id", "ascending")]).to_pylist()
    return [list(group) for _, group in groupby(few, key=itemgetter(same))]


def _odd_targets(index: pa.Table, classes: Sequence[str]) -> list[str]:
    """Return the ids of pictures whose target is highest for another class than the label."""
    soft = index.select(["id", "label", "target"]).filter(pc.is_valid(index["target"]))
    if not len(soft):
        return []
    targets = soft["target"].combine_chunks().flatten().to_numpy().reshape(len(soft), -1)
    highest = pa.array(classes).take(pa.array(targets.argmax(axis=1)))
    ids: list[str] = soft["id"].filter(pc.not_equal(soft["label"], highest)).to_pylist()
    return ids


def _across_splits(copies: Copies) -> list[str]:
    return [_joined(each, "split") for each in copies if _differ(each, "split")]


def _differ(rows: Sequence[Row], column: str) -> bool:
    return len({row[column] for row in rows}) > 1


def _joined(rows: Sequence[Row], column: str) -> str:
    """Return `a (train) = b (test)`."""
    shown = [f"{row['id']} ({row[column]})" for row in rows]
    return " = ".join(shown if len(shown) <= NUM_NAMED else [*shown[:NUM_NAMED], f"{len(rows) - NUM_NAMED:,} more"])


def _class_sizes(splits: Mapping[str, Mapping[str, int]]) -> list[str]:
    held = {split: counts for split, counts in splits.items() if any(counts.values())}
    empty = [
        f"no picture of class {label} in {split}"
        for split, counts in held.items()
        for label, n in counts.items()
        if not n
    ]
    few = [
        f"{label} in {split} ({n})"
        for split, counts in held.items()
        for label, n in counts.items()
        if 0 < n < FEW_PICTURES
    ]
    return [*empty, *_finding(f"classes with fewer than {FEW_PICTURES} pictures in a split", few)]


def _finding(what: str, cases: Sequence[str], num: int | None = None) -> list[str]:
    """Return one line with the number of cases, all of `cases` if not told, and the first of them; or none for none."""
    num = len(cases) if num is None else num
    if not num:
        return []
    more = f" and {num - NUM_NAMED:,} more" if num > NUM_NAMED else ""
    return [f"{what}: {num:,} ({', '.join(cases[:NUM_NAMED])}{more})"]
