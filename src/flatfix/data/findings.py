"""What a reader should know of the pictures of a version, found before anything of it is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from flatfix.data.likeness import alike
from flatfix.data.staging import Row
from flatfix.errors import UserError, enumerated

# Below this, one picture moves the recall of a class by more than ten points.
FEW_PICTURES = 10
NUM_NAMED = 5  # examples in a finding, which is one line


def findings(
    rows: Sequence[Row], splits: Mapping[str, Mapping[str, int]], classes: Sequence[str], *, keeps_groups: bool
) -> tuple[str, ...]:
    """Return a line for everything odd about the rows of an index.

    - Classes with no picture in a split that has others, or with fewer than `FEW_PICTURES`.
    - Copies, which are pictures of the same bytes, in more than one split or with more than one label.
    - Groups in more than one split, unless the split rule stratifies them, and so divides them on purpose.
    - Targets that are highest for another class than the label.

    Args:
        rows: of the index.
        splits: number of pictures of each class, for each split.
        classes: in label order.
        keeps_groups: whether the split rule keeps groups together.
    """
    relabelled = _divided(rows, "sha256", "label")
    parted = _divided([row for row in rows if row["group"]], "group", "split") if keeps_groups else []
    odd = [row["id"] for row in rows if row["target"] and classes[int(np.argmax(row["target"]))] != row["label"]]
    return (
        *_class_sizes(splits),
        *_finding("pictures in more than one split, byte for byte", copies_across_splits(rows)),
        *_finding(
            "pictures with more than one label, byte for byte", [_joined(copies, "label") for copies in relabelled]
        ),
        *_finding(
            "groups in more than one split",
            [f"{part[0]['group']} ({', '.join(sorted({row['split'] for row in part}))})" for part in parted],
        ),
        *_finding("targets that are highest for another class than the label", odd),
    )


def near_duplicates(rows: Sequence[Row], hashes: NDArray[np.uint64]) -> list[str]:
    """Return one line that counts the pictures that look alike, those in different splits first, or none.

    Pairs of the same bytes are copies, and not among them.

    Args:
        rows: of the index.
        hashes: `[N, 2]`, see `likeness.difference_hash`, of the same pictures.
    """
    pairs = [(rows[one], rows[other]) for one, other in alike(hashes)]
    pairs = [(one, other) for one, other in pairs if one["sha256"] != other["sha256"]]
    pairs.sort(key=lambda pair: pair[0]["split"] == pair[1]["split"])
    num_across = sum(one["split"] != other["split"] for one, other in pairs)
    return _finding(
        f"pairs of pictures that look alike, {num_across:,} of them across splits",
        [f"{one['id']} ({one['split']}) ~ {other['id']} ({other['split']})" for one, other in pairs],
    )


def refuse_copies_across_splits(rows: Sequence[Row]) -> None:
    """Raise UserError, naming the first copies, when a picture is in more than one split, byte for byte."""
    copies = copies_across_splits(rows)
    if copies:
        raise UserError(
            f"dataset.source: pictures in more than one split, byte for byte: {len(copies):,}. A model would be judged "
            f"on what it has learned, so nothing was published:{enumerated(copies)}\n"
            "Remove the copies, give those of a picture one group (dataset.split.groups=keep), or set "
            "dataset.allow_duplicates=true to publish them as they are."
        )


def copies_across_splits(rows: Sequence[Row]) -> list[str]:
    """Return the ids and splits of each picture that is in more than one split, byte for byte."""
    return [_joined(copies, "split") for copies in _divided(rows, "sha256", "split")]


def _divided(rows: Sequence[Row], same: str, different: str) -> list[list[Row]]:
    """Return the rows, by id, of each value of the column `same` that has more than one value of `different`."""
    ordered = sorted(rows, key=itemgetter(same, "id"))  # a dictionary of lists would take several times the memory
    together = (list(group) for _, group in groupby(ordered, key=itemgetter(same)))
    return [group for group in together if len({row[different] for row in group}) > 1]


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


def _finding(what: str, cases: Sequence[str]) -> list[str]:
    """Return one line with the number of cases and the first of them, or none for no case."""
    if not cases:
        return []
    more = f" and {len(cases) - NUM_NAMED:,} more" if len(cases) > NUM_NAMED else ""
    return [f"{what}: {len(cases):,} ({', '.join(cases[:NUM_NAMED])}{more})"]
