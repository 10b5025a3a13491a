from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from flatfix.data.sources.base import Record
from flatfix.data.splits import Fold, SplitRule, assign, folds, quotas, rank, ranked
from flatfix.errors import UserError
from tests.helpers.images import records


def assigned(some, rule):
    return assign(some, [record.id for record in some], rule)


def by_id(some, rule):
    return dict(zip((record.id for record in some), assigned(some, rule), strict=True))


def test_the_same_seed_and_ids_give_the_same_splits_whatever_the_order():
    some = records(200)
    shuffled = random.Random(1).sample(some, len(some))

    assert by_id(some, SplitRule(seed=3)) == by_id(shuffled, SplitRule(seed=3))


def test_another_seed_draws_other_pictures():
    assert by_id(records(200), SplitRule(seed=0)) != by_id(records(200), SplitRule(seed=1))


def test_splits_have_their_share_of_every_class():
    some = records(1000) + [Record(f"rare-{number}", "bird", "", "png") for number in range(20)]

    counts = Counter(zip((record.label for record in some), assigned(some, SplitRule()), strict=True))

    for label, size in (("cat", 500), ("dog", 500), ("bird", 20)):
        assert abs(counts[label, "val"] - 0.15 * size) <= 1
        assert abs(counts[label, "test"] - 0.25 * size) <= 1


def test_many_small_classes_fill_the_splits_all_the_same():
    some = records(300, classes=[f"class-{number:03d}" for number in range(100)])

    counts = Counter(assigned(some, SplitRule()))

    assert counts == {"train": 180, "val": 45, "test": 75}


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_group_never_straddles_splits(size):
    some = [
        Record(f"{tire}-{side}", "cat" if (tire + side) % 3 else "dog", "", "png", group=f"tire {tire}")
        for tire in range(60)
        for side in range(size)
    ]

    splits = assigned(some, SplitRule())

    of_group = {(record.group, split) for record, split in zip(some, splits, strict=True)}
    assert len(of_group) == 60
    assert abs(splits.count("test") / len(some) - 0.25) < 0.05
    assert abs(splits.count("val") / len(some) - 0.15) < 0.05


def test_a_group_with_the_name_of_a_picture_is_not_that_picture():
    some = [*records(40), *[Record(f"tire-{n}", "cat", "", "png", group="picture-0000") for n in range(8)]]

    splits = by_id(some, SplitRule())

    assert len({splits[f"tire-{number}"] for number in range(8)}) == 1
    assert len(splits) == 48


def test_stratified_groups_have_their_share_in_every_split():
    some = [*records(400, group="mono"), *[Record(f"p{n}", "cat", "", "png", group="poly") for n in range(100)]]

    splits = assigned(some, SplitRule(groups="stratify"))

    counts = Counter((record.group, split) for record, split in zip(some, splits, strict=True))
    assert abs(counts["mono", "test"] - 100) <= 2
    assert abs(counts["poly", "test"] - 25) <= 1


def test_two_whole_groups_cannot_fill_three_splits():
    some = [*records(20, group="mono"), *[Record(f"p{n}", "cat", "", "png", group="poly") for n in range(20)]]

    with pytest.raises(UserError, match=r"dataset\.split: no picture is left.*groups=keep.*groups=stratify"):
        assigned(some, SplitRule())


def test_splits_of_the_source_stand():
    some = [*records(10, split="train"), Record("v", "cat", "", "png", "val"), Record("t", "cat", "", "png", "test")]

    assert assigned(some, SplitRule()) == ["train"] * 10 + ["val", "test"]


def test_a_split_that_the_source_lacks_is_drawn_from_its_train_pictures():
    some = [*records(100, split="train"), *[Record(f"t{n}", "cat", "", "png", "test") for n in range(30)]]

    splits = assigned(some, SplitRule())

    assert Counter(splits) == {"train": 85, "val": 15, "test": 30}
    assert splits[100:] == ["test"] * 30


def test_adding_pictures_moves_few_of_the_others():
    before = by_id(records(1000), SplitRule())
    after = by_id(records(1100), SplitRule())

    assert sum(before[id] != after[id] for id in before) < 60


def test_a_fraction_of_zero_leaves_the_split_empty():
    assert set(assigned(records(40), SplitRule(val_fraction=0))) == {"train", "test"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"val_fraction": -0.1}, r"dataset\.split\.val_fraction=-0\.1"),
        ({"test_fraction": 1.0}, r"dataset\.split\.test_fraction=1\.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"groups": "kept"}, r"dataset\.split\.groups=kept.*Did you mean 'keep'"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        SplitRule(**values)


def test_quotas_round_the_total_once():
    assert quotas([3] * 100, 0.15) != [0] * 100
    assert sum(quotas([3] * 100, 0.15)) == 45
    assert quotas([10, 10], 1.0) == [10, 10]


def test_ids_are_sorted_by_the_keys_and_then_by_rank():
    ids = [f"p{number % 50}" for number in range(100)]
    first, second = (np.random.default_rng(seed).integers(0, 3, 100) for seed in (0, 1))

    expected = sorted(range(100), key=lambda row: (first[row], second[row], rank(ids[row], seed=7)))

    assert ranked(ids, 7, within=(first, second)).tolist() == expected
    assert ranked([]).tolist() == []


def pool_of(sizes, group=None):
    return [(f"{label}-{number}", label, group) for label, size in sizes.items() for number in range(size)]


def shares(pool, fold_of):
    return Counter((label, fold_of[id]) for id, label, _ in pool)


@pytest.mark.parametrize("num_folds", [2, 5, 7])
def test_every_fold_has_its_share_of_every_class_and_of_all_pictures(num_folds):
    pool = pool_of({"cat": 103, "dog": 58, "bird": 7})

    fold_of = folds(pool, num_folds, SplitRule())

    counts = shares(pool, fold_of)
    for label, size in (("cat", 103), ("dog", 58), ("bird", 7)):
        assert {counts[label, fold] for fold in range(num_folds)} <= {size // num_folds, -(-size // num_folds)}
    assert len(fold_of) == 168
    assert set(Counter(fold_of.values()).values()) <= {168 // num_folds, -(-168 // num_folds)}


def test_folds_depend_on_the_ids_and_the_seed_but_not_on_the_order():
    pool = pool_of({"cat": 50, "dog": 50})
    shuffled = random.Random(0).sample(pool, len(pool))

    assert folds(pool, 5, SplitRule(seed=1)) == folds(shuffled, 5, SplitRule(seed=1))
    assert folds(pool, 5, SplitRule(seed=1)) != folds(pool, 5, SplitRule(seed=2))


def test_a_group_never_straddles_folds_and_folds_are_of_like_size():
    sizes = random.Random(0).choices(range(1, 8), k=90)
    pool = [
        (f"{tire}-{side}", "cat" if tire % 3 else "dog", f"tire {tire}")
        for tire, size in enumerate(sizes)
        for side in range(size)
    ]

    fold_of = folds(pool, 5, SplitRule())

    assert len({(group, fold_of[id]) for id, _, group in pool}) == 90
    counts = shares(pool, fold_of)
    for label in ("cat", "dog"):
        of_label = [counts[label, fold] for fold in range(5)]
        assert max(of_label) - min(of_label) <= 2


def test_stratified_groups_have_their_share_in_every_fold():
    pool = [*pool_of({"cat": 20, "dog": 30}, "mono"), *[(f"p{n}", "cat", "poly") for n in range(10)]]

    fold_of = folds(pool, 5, SplitRule(groups="stratify"))

    counts = Counter((label, group, fold_of[id]) for id, label, group in pool)
    for label, group, share in (("cat", "mono", 4), ("dog", "mono", 6), ("cat", "poly", 2)):
        assert [counts[label, group, fold] for fold in range(5)] == [share] * 5


def test_a_class_with_few_pictures_of_two_groups_still_reaches_every_fold():
    pool = [*pool_of({"ant": 1, "cat": 3}, "mono"), *[(f"p{n}", "cat", "poly") for n in range(2)]]
    pool += [(f"a{n}", "ant", "poly") for n in range(4)]

    counts = shares(pool, folds(pool, 5, SplitRule(groups="stratify")))

    assert all(counts[label, fold] == 1 for label in ("ant", "cat") for fold in range(5))


def test_more_folds_than_pictures_of_a_class_are_refused():
    with pytest.raises(UserError, match=r"dataset\.num_folds=5: .* class dog reach 4 folds only .*groups=keep"):
        folds(pool_of({"cat": 40, "dog": 4}), 5, SplitRule())


def test_more_folds_than_groups_of_a_class_are_refused():
    pool = [*pool_of({"cat": 40}), *[(f"d{n}", "dog", f"tire {n % 3}") for n in range(30)]]

    with pytest.raises(UserError, match=r"dataset\.num_folds=5: .* class dog reach 3 folds only"):
        folds(pool, 5, SplitRule())
    assert len(folds(pool, 5, SplitRule(groups="stratify"))) == 70


def test_a_fold_is_chosen_by_both_options_or_neither():
    assert Fold.chosen(None, None) is None
    assert Fold.chosen(0, 5) == Fold(0, 5)


@pytest.mark.parametrize(
    ("index", "num_folds", "message"),
    [
        (2, None, r"dataset\.fold=2: .* Set dataset\.num_folds"),
        (None, 5, r"dataset\.num_folds=5: set dataset\.fold, from 0 to 4"),
        (5, 5, r"dataset\.fold=5: with dataset\.num_folds=5, it must be from 0 to 4"),
        (-1, 5, r"dataset\.fold=-1"),
        (0, 1, r"dataset\.num_folds=1: must be at least 2"),
    ],
)
def test_a_fold_that_does_not_exist_is_refused(index, num_folds, message):
    with pytest.raises(UserError, match=message):
        Fold.chosen(index, num_folds)


@pytest.mark.parametrize("given", ["val", "test"])
def test_a_picture_without_a_split_goes_where_the_source_has_put_its_group(given: str) -> None:
    pictures = [
        replace(record, group=f"unit-{number // 4}", split=given if number % 4 == 0 and number < 20 else None)
        for number, record in enumerate(records(80))
    ]
    splits = assigned(pictures, SplitRule())
    assert splits[:20] == [given] * 20
    of_group = {(picture.group, split) for picture, split in zip(pictures, splits, strict=True)}
    assert len(of_group) == 20
