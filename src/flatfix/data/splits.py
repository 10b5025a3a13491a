"""Divide pictures into train, val and test: by the source, or drawn."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatfix.data.sources.base import Record
from flatfix.errors import UserError, one_of

SPLITS = ("train", "val", "test")

Labelled = tuple[str, str, str | None]  # what a draw goes by: id, label and group of a picture


@dataclass(frozen=True)
class SplitRule:
    """Say how pictures are divided where the source does not.

    Attributes:
        val_fraction: share of the divided pictures that goes to val.
        test_fraction: share of them that goes to test.
        seed: another seed draws other pictures.
        groups: `keep` never lets a group straddle splits; `stratify` gives every split its share of every group.
    """

    val_fraction: float = 0.15
    test_fraction: float = 0.25
    seed: int = 0
    groups: str = "keep"

    def __post_init__(self) -> None:
        """Refuse values that leave no training data."""
        one_of("dataset.split.groups", self.groups, ("keep", "stratify"))
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"dataset.split.{name}={getattr(self, name)}: must be at least 0 and below 1.")
        if self.val_fraction + self.test_fraction >= 1:
            raise UserError(
                f"dataset.split.val_fraction={self.val_fraction} and test_fraction={self.test_fraction} "
                "leave nothing to train on: their sum must stay below 1."
            )


@dataclass(frozen=True)
class Fold:
    """Say which part of train and val, divided anew, is val.

    Attributes:
        index: the part, counted from 0.
        num_folds: number of parts.
    """

    index: int
    num_folds: int

    def __post_init__(self) -> None:
        """Refuse a part that does not exist."""
        if self.num_folds < 2:
            raise UserError(f"dataset.num_folds={self.num_folds}: must be at least 2.")
        if not 0 <= self.index < self.num_folds:
            raise UserError(
                f"dataset.fold={self.index}: with dataset.num_folds={self.num_folds}, it must be from 0 to "
                f"{self.num_folds - 1}."
            )

    @classmethod
    def chosen(cls, index: int | None, num_folds: int | None) -> Fold | None:
        """Return the fold that `dataset.fold` and `dataset.num_folds` choose; None where neither is set.

        Raises:
            UserError: when one is set without the other, and as above.
        """
        if index is None and num_folds is None:
            return None
        if num_folds is None:
            raise UserError(f"dataset.fold={index}: of how many? Set dataset.num_folds as well.")
        if index is None:
            raise UserError(f"dataset.num_folds={num_folds}: set dataset.fold, from 0 to {num_folds - 1}, as well.")
        return cls(index, num_folds)


def rank(id: str, seed: int = 0) -> bytes:
    """Return a sort key that puts ids into an order without pattern, the same everywhere."""
    return hashlib.sha256(f"{seed}:{id}".encode()).digest()


def ranked(ids: Sequence[str], seed: int = 0, within: Sequence[NDArray[np.int64]] = ()) -> NDArray[np.int64]:
    """Return the positions that sort the ids by `within`, the first key first, and then by rank; ties keep their order.

    Args:
        ids: `[N]`.
        seed: of the rank.
        within: keys `[N]`.
    """
    ranks = bytearray()  # sorting a million bytes objects would take four times the memory
    for id in ids:
        ranks += rank(id, seed)
    words = np.frombuffer(ranks, ">u8").reshape(-1, 4)
    return np.lexsort([*words.T[::-1], *reversed(within)])


def quotas(sizes: Sequence[int], fraction: float) -> list[int]:
    """Round `fraction` of each stratum so that the total is rounded only once.

    Many small strata would otherwise all lose (or all gain) the same part of a picture.
    """
    ends = [int(total * fraction + 0.5) for total in accumulate(sizes, initial=0)]
    return [after - before for before, after in pairwise(ends)]


def share(ids: Sequence[str], labels: NDArray[np.int64], fraction: float, seed: int) -> list[int]:
    """Return the rows of a seeded part with the same share of every label, in their order.

    Args:
        ids: `[N]`, which the draw goes by.
        labels: `[N]`.
        fraction: from 0 to 1.
        seed: another seed draws other rows.
    """
    members = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    kept: list[int] = []
    for rows, quota in zip(members, quotas([len(rows) for rows in members], fraction), strict=True):
        kept += sorted(rows, key=lambda row: rank(ids[row], seed))[:quota]
    return sorted(kept)


def assign(records: Sequence[Record], ids: Sequence[str], rule: SplitRule) -> list[str]:
    """Return train, val or test for each record, drawn by `ids`, which are unique.

    A split that the source gives stands. A split that it does not give is drawn from the rest, and where it gives
    train, from train; with `keep`, pictures without a split go where the source has put others of their group.
    The draw is stratified by label, depends on `rule` and the ids but not on the order of the records, and moves few
    pictures when more are added.

    Raises:
        UserError: when a split with a fraction above 0 would stay empty.
    """
    given = {record.split for record in records}
    splits = _given(records, rule)
    is_drawn = [split == "train" for split in splits]
    pool = list(compress(records, is_drawn))
    test = 0.0 if "test" in given else rule.test_fraction
    val = 0.0 if "val" in given else rule.val_fraction
    strata = _strata(
        list(compress(ids, is_drawn)), [record.label for record in pool], [record.group for record in pool], rule
    )
    drawn = iter(_drawn(strata, len(pool), test, test + val))
    splits = [next(drawn) if split == "train" else split for split in splits]
    for split, fraction in (("train", 1.0), ("val", val), ("test", test)):
        if fraction and split not in splits:
            raise UserError(
                f"dataset.split: no picture is left for {split}, with {len(pool)} pictures to divide, "
                f"val_fraction={val:g}, test_fraction={test:g} and groups={rule.groups}. "
                "Add pictures, set groups=stratify, or change the fractions."
            )
    return splits


def _given(records: Sequence[Record], rule: SplitRule) -> list[str]:
    """Return the split of each record, with `keep` that of others of its group in val or test, or train for now."""
    split_of_group: dict[str | None, str] = {}
    if rule.groups == "keep":
        for split in ("val", "test"):
            split_of_group |= {record.group: split for record in records if record.split == split and record.group}
    return [record.split or split_of_group.get(record.group, "train") for record in records]


def folds(pool: Sequence[Labelled], num_folds: int, rule: SplitRule) -> dict[str, int]:
    """Return the fold of each id, so that every fold has its share of every class (and group, with `stratify`).

    The draw depends on the ids, `rule.seed` and `rule.groups`. Shares differ by one picture at most where units are
    single pictures. Whole groups go, the largest first, to where there is least of their class.

    Raises:
        UserError: when a class does not reach every fold.
    """
    ids, labels, groups = zip(*pool, strict=True) if pool else ((), (), ())
    fold_of = np.empty(len(pool), np.int64)
    sizes = [0] * num_folds
    for stratum in _strata(ids, labels, groups, rule):
        shares = [0] * num_folds
        chosen = np.empty_like(stratum.sizes)
        largest_first = np.argsort(-stratum.sizes, kind="stable")
        for unit, size in zip(largest_first.tolist(), stratum.sizes[largest_first].tolist(), strict=True):
            *_, fold = min(zip(shares, sizes, range(num_folds), strict=True))
            chosen[unit] = fold
            shares[fold] += size
            sizes[fold] += size
        fold_of[stratum.rows] = np.repeat(chosen, stratum.sizes)
    reached = defaultdict(set)
    for label, fold in zip(labels, fold_of.tolist(), strict=True):
        reached[label].add(fold)
    for label, held in sorted(reached.items()):
        if len(held) < num_folds:
            raise UserError(
                f"dataset.num_folds={num_folds}: the train and val pictures of class {label} reach {len(held)} folds "
                f"only (dataset.split.groups={rule.groups}). Choose fewer folds, or add pictures of that class."
            )
    return dict(zip(ids, fold_of.tolist(), strict=True))


def tally(pictures: Iterable[tuple[str, str]], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count (split, label) pairs: the number of pictures of each class, for each split."""
    counts = Counter(pictures)
    return {split: {label: counts[split, label] for label in classes} for split in SPLITS}


class _Stratum(NamedTuple):
    """Hold units, each of which goes to one split or fold: a whole group, or one picture.

    Attributes:
        rows: of the pictures, unit by unit.
        sizes: number of pictures of each unit.
    """

    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]


def _drawn(strata: Sequence[_Stratum], num_pictures: int, test: float, test_and_val: float) -> list[str]:
    """Return the split of each picture: the first units of every stratum are test, the next val, the rest train."""
    sizes = [len(stratum.rows) for stratum in strata]
    splits = np.empty(num_pictures, np.int64)
    for stratum, test_end, val_end in zip(strata, quotas(sizes, test), quotas(sizes, test_and_val), strict=True):
        middles = np.cumsum(stratum.sizes) - stratum.sizes / 2
        of_units = np.where(middles < test_end, 2, np.where(middles < val_end, 1, 0))
        splits[stratum.rows] = np.repeat(of_units, stratum.sizes)
    return [SPLITS[split] for split in splits.tolist()]


def _strata(ids: Sequence[str], labels: Sequence[str], groups: Sequence[str | None], rule: SplitRule) -> list[_Stratum]:
    """Return units of the same class (and group, with `stratify`), in an order without pattern."""
    main, part = _codes(labels), _codes(groups)
    if rule.groups == "keep" and part.any():
        unit_of = np.where(part, len(ids) + part, np.arange(len(ids)))  # groups come after single pictures
        _, first, unit_of, sizes = np.unique(unit_of, return_index=True, return_inverse=True, return_counts=True)
        main, part = _most_frequent(unit_of, main), np.zeros_like(first)
        order = ranked([groups[row] or ids[row] for row in first.tolist()], rule.seed, within=(main, part))
        sizes = sizes[order]
        rows = np.argsort(np.argsort(order)[unit_of], kind="stable")
    else:
        rows = order = ranked(ids, rule.seed, within=(main, part))
        sizes = np.ones_like(order)
    bounds = np.flatnonzero(np.diff(main[order]) | np.diff(part[order])) + 1
    strata = zip(np.split(rows, np.cumsum(sizes)[bounds - 1]), np.split(sizes, bounds), strict=True)
    return [_Stratum(*stratum) for stratum in strata] if len(ids) else []


def _codes(values: Sequence[str | None]) -> NDArray[np.int64]:
    """Return the position of each value among all, sorted, counted from 1; 0 for None and an empty text."""
    code = {value: number for number, value in enumerate(sorted({"", *(value or "" for value in values)}))}
    return np.fromiter((code[value or ""] for value in values), np.int64, len(values))


def _most_frequent(unit_of: NDArray[np.int64], label_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the label that most pictures of each unit have, the first of several."""
    num_labels = int(label_of.max(initial=0)) + 1
    pairs, counts = np.unique(unit_of * num_labels + label_of, return_counts=True)
    units, labels = np.divmod(pairs, num_labels)
    order = np.lexsort((labels, -counts, units))
    _, first = np.unique(units[order], return_index=True)
    most: NDArray[np.int64] = labels[order][first]
    return most
