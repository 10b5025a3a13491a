"""Divide pictures into train, val and test: by the source, or drawn."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from flatfix.data.sources.base import Record
from flatfix.errors import UserError, one_of

SPLITS = ("train", "val", "test")


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
    train, from train. The draw is stratified by label, depends on `rule` and the ids but not on the order of the
    records, and moves few pictures when more are added.

    Raises:
        UserError: when a split with a fraction above 0 would stay empty.
    """
    given = {record.split for record in records}
    pool = [record for record in records if record.split in (None, "train")]
    test = 0.0 if "test" in given else rule.test_fraction
    val = 0.0 if "val" in given else rule.val_fraction
    drawn = _draw(pool, rule, test, test + val)
    splits = [drawn.get(record.id, record.split or "train") for record in records]
    for split, fraction in (("train", 1.0), ("val", val), ("test", test)):
        if fraction and split not in splits:
            raise UserError(
                f"dataset.split: no picture is left for {split}, with {len(pool)} pictures to divide, "
                f"val_fraction={val:g}, test_fraction={test:g} and groups={rule.groups}. "
                "Add pictures, set groups=stratify, or change the fractions."
            )
    return splits


def _draw(pool: Sequence[Record], rule: SplitRule, test: float, test_and_val: float) -> dict[str, str]:
    """Return the split of each id: the first ranks of every stratum are test, the next val, the rest train."""
    strata = _strata(pool, rule)
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


def _strata(pool: Sequence[Record], rule: SplitRule) -> list[list[list[str]]]:
    """Return strata of units of ids: a unit is a whole group, or one picture."""
    units = defaultdict(list)
    for record in pool:
        is_whole = rule.groups == "keep" and record.group is not None
        units[is_whole, record.group if is_whole else record.id].append(record)
    strata = defaultdict(list)
    for key in sorted(units, key=lambda key: (rank(str(key[1]), rule.seed), key[0])):
        members = units[key]
        labels = [record.label for record in members]
        main_label = max(sorted(set(labels)), key=labels.count)
        part = members[0].group if rule.groups == "stratify" else None
        strata[main_label, part or ""].append([record.id for record in members])
    return [strata[key] for key in sorted(strata)]
