"""Divide pictures into train, val and test: by the source, or drawn."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

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


def quotas(sizes: Sequence[int], fraction: float) -> list[int]:
    """Round `fraction` of each stratum so that the total is rounded only once.

    Many small strata would otherwise all lose (or all gain) the same part of a picture.
    """
    ends = [int(total * fraction + 0.5) for total in accumulate(sizes, initial=0)]
    return [after - before for before, after in pairwise(ends)]


def assign(records: Sequence[Record], rule: SplitRule) -> list[str]:
    """Return train, val or test for each record; ids must be unique.

    A split that the source gives stands. A split that it does not give is drawn from the rest, and where it gives
    train, from train; with `keep`, pictures without a split go where the source has put others of their group.
    The draw is stratified by label, depends on `rule` and the ids but not on the order of the records, and moves few
    pictures when more are added.

    Raises:
        UserError: when a split with a fraction above 0 would stay empty.
    """
    given = {record.split for record in records}
    followed = _followed(records) if rule.groups == "keep" else {}
    pool = [record for record in records if record.split in (None, "train") and record.id not in followed]
    test = 0.0 if "test" in given else rule.test_fraction
    val = 0.0 if "val" in given else rule.val_fraction
    drawn = followed | _draw(pool, rule, test, test + val)
    splits = [drawn.get(record.id, record.split or "train") for record in records]
    for split, fraction in (("train", 1.0), ("val", val), ("test", test)):
        if fraction and split not in splits:
            raise UserError(
                f"dataset.split: no picture is left for {split}, with {len(pool)} pictures to divide, "
                f"val_fraction={val:g}, test_fraction={test:g} and groups={rule.groups}. "
                "Add pictures, set groups=stratify, or change the fractions."
            )
    return splits


def _followed(records: Sequence[Record]) -> dict[str, str]:
    """Return the split of each picture without one whose group the source has put into val or test."""
    split_of_group = {
        record.group: split for split in ("val", "test") for record in records if record.split == split and record.group
    }
    return {
        record.id: split_of_group[record.group]
        for record in records
        if record.split is None and record.group in split_of_group
    }


def folds(pool: Sequence[Labelled], num_folds: int, rule: SplitRule) -> dict[str, int]:
    """Return the fold of each id, so that every fold has its share of every class (and group, with `stratify`).

    The draw depends on the ids, `rule.seed` and `rule.groups`. Shares differ by one picture at most where units are
    single pictures. Whole groups go, the largest first, to where there is least of their class.

    Raises:
        UserError: when a class does not reach every fold.
    """
    fold_of: dict[str, int] = {}
    sizes = [0] * num_folds
    for units in _strata(pool, rule):
        shares = [0] * num_folds
        for unit in sorted(units, key=len, reverse=True):
            *_, fold = min(zip(shares, sizes, range(num_folds), strict=True))
            fold_of.update(dict.fromkeys(unit, fold))
            shares[fold] += len(unit)
            sizes[fold] += len(unit)
    reached = defaultdict(set)
    for id, label, _ in pool:
        reached[label].add(fold_of[id])
    for label, held in sorted(reached.items()):
        if len(held) < num_folds:
            raise UserError(
                f"dataset.num_folds={num_folds}: the train and val pictures of class {label} reach {len(held)} folds "
                f"only (dataset.split.groups={rule.groups}). Choose fewer folds, or add pictures of that class."
            )
    return fold_of


def tally(pictures: Iterable[tuple[str, str]], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count (split, label) pairs: the number of pictures of each class, for each split."""
    counts = Counter(pictures)
    return {split: {label: counts[split, label] for label in classes} for split in SPLITS}


def _draw(pool: Sequence[Record], rule: SplitRule, test: float, test_and_val: float) -> dict[str, str]:
    """Return the split of each id: the first ranks of every stratum are test, the next val, the rest train."""
    strata = _strata([(record.id, record.label, record.group) for record in pool], rule)
    sizes = [sum(map(len, units)) for units in strata]
    splits = {}
    for units, test_end, val_end in zip(strata, quotas(sizes, test), quotas(sizes, test_and_val), strict=True):
        position = 0
        for unit in units:
            middle = position + len(unit) / 2
            split = "test" if middle < test_end else "val" if middle < val_end else "train"
            splits.update(dict.fromkeys(unit, split))
            position += len(unit)
    return splits


def _strata(pool: Iterable[Labelled], rule: SplitRule) -> list[list[list[str]]]:
    """Return strata of units of ids: a unit is a whole group, or one picture."""
    units = defaultdict(list)
    for id, label, group in pool:
        is_whole = rule.groups == "keep" and group is not None
        units[is_whole, group if is_whole else id].append((id, label, group))
    strata = defaultdict(list)
    for key in sorted(units, key=lambda key: (rank(str(key[1]), rule.seed), key[0])):
        members = units[key]
        labels = [label for _, label, _ in members]
        main_label = max(sorted(set(labels)), key=labels.count)
        part = members[0][2] if rule.groups == "stratify" else None
        strata[main_label, part or ""].append([id for id, _, _ in members])
    return [strata[key] for key in sorted(strata)]
