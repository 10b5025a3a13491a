from __future__ import annotations

import math

import pytest

from flatfix.evaluation.wording import counted, percent, shortened, told_apart


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.0\u00a0%"), (0.8315, "83.2\u00a0%"), (1, "100.0\u00a0%"), (math.nan, "–")]
)
def test_shares_are_percentages_that_stay_on_one_line(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 pictures"), (1, "1 picture"), (10_000, "10,000 pictures")])
def test_things_are_counted_in_their_number(number: int, text: str) -> None:
    assert counted(number, "picture") == text


def test_long_names_keep_their_beginning_and_end() -> None:
    assert shortened("Plantae Tracheophyta Magnoliopsida Rosales species 007") == "Plantae Tra…species 007"
    assert shortened("x" * 24) == "x" * 24
    assert len(shortened("x" * 25)) <= 24


def test_long_names_stay_different_ones_when_they_are_cut():
    names = [f"class number {number:02d} with a rather long name" for number in range(40)]
    cut = told_apart(names)
    assert len(set(cut)) == 40
    assert max(map(len, cut)) <= 24
    assert told_apart(["cat", "dog"]) == ["cat", "dog"]
