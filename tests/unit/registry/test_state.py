from __future__ import annotations

import pytest

from flatfix.registry.journal import Move
from flatfix.registry.state import Difference, State, differences, fold

ALL = range(1, 10)


def moves(*steps: str) -> list[Move]:
    """Return moves as written here: `stage 2`, `live 2`, `back 1`."""
    actions = {"stage": ("promote", "staging"), "live": ("promote", "production"), "back": ("rollback", "production")}
    found = []
    for number, step in enumerate(steps, 1):
        word, version = step.split()
        action, to_stage = actions[word]
        found.append(
            Move(
                number,
                action,
                int(version),
                "",
                to_stage,
                None,
                None,
                None,
                "someone@here",
                "2026-11-22T06:00:00+00:00",
            )
        )
    return found


def test_without_a_move_every_version_is_a_candidate() -> None:
    state = fold([], ALL)
    assert (state.production, state.previous, state.staging) == (None, (), ())
    assert state.stage(3) == "candidate"


def test_a_version_goes_over_staging_to_production_and_archives_the_one_before() -> None:
    state = fold(moves("stage 1", "live 1", "stage 2", "stage 3", "live 2"), ALL)
    assert (state.production, state.previous, state.staging) == (2, (1,), (3,))
    assert state.stages == {1: "archived", 2: "production", 3: "staging"}


def test_the_latest_in_staging_is_the_last_that_went_there() -> None:
    assert fold(moves("stage 1", "stage 2", "stage 1"), ALL).staging == (2, 1)


def test_a_second_rollback_goes_back_two_and_not_to_the_bad_one() -> None:
    lived = ("live 1", "live 2", "live 3")
    once = fold(moves(*lived, "back 2"), ALL)
    assert (once.production, once.previous, once.stage(3)) == (2, (1,), "archived")
    twice = fold(moves(*lived, "back 2", "back 1"), ALL)
    assert (twice.production, twice.previous) == (1, ())


def test_a_rollback_past_versions_leaves_none_of_them_to_return_to() -> None:
    state = fold(moves("live 1", "live 2", "live 3", "live 4", "back 2"), ALL)
    assert (state.production, state.previous) == (2, (1,))
    assert state.stages == {1: "archived", 2: "production", 3: "archived", 4: "archived"}


def test_after_a_rollback_the_next_version_has_the_good_one_before_it() -> None:
    assert fold(moves("live 1", "live 2", "back 1", "live 3"), ALL).previous == (1,)


def test_a_version_that_goes_live_again_is_not_before_itself() -> None:
    state = fold(moves("live 1", "live 2", "live 1"), ALL)
    assert (state.production, state.previous) == (1, (2,))


def test_a_deleted_version_is_nowhere() -> None:
    state = fold(moves("live 1", "live 2", "live 3", "stage 4"), {1, 2})
    assert (state.production, state.previous, state.staging) == (None, (1, 2), ())
    assert state.stages == {1: "archived", 2: "archived"}
    assert fold(moves("live 1", "live 2", "live 3", "back 2"), {1, 2}).production == 2


def test_aliases_name_what_is_live_what_was_before_and_the_latest_in_staging() -> None:
    state = fold(moves("live 1", "live 2", "stage 3", "stage 4"), ALL)
    assert state.aliases == {"production": 2, "staging": 4, "previous": 1}


def test_what_agrees_is_not_written() -> None:
    state = fold(moves("live 1", "stage 2"), ALL)
    tags = {1: "production", 2: "staging", 3: "candidate"}
    assert differences(state, {"production": 1, "staging": 2, "canary": 3}, tags) == []


def test_production_is_written_first_and_tags_last() -> None:
    state = fold(moves("live 1", "live 2"), ALL)
    found = differences(state, {"production": 1, "staging": 2}, {1: "production", 2: "staging"})
    assert found == [
        Difference("alias", "production", "1", "2"),
        Difference("alias", "staging", "2", None),
        Difference("alias", "previous", None, "1"),
        Difference("stage", "1", "production", "archived"),
        Difference("stage", "2", "staging", "production"),
    ]


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Difference("alias", "production", "4", "7"), "@production: 4 → 7"),
        (Difference("alias", "staging", "4", None), "@staging: 4 → none"),
        (Difference("stage", "4", "production", "archived"), "stage of version 4: production → archived"),
    ],
)
def test_a_difference_says_in_a_few_words_what_is_written(difference: Difference, words: str) -> None:
    assert str(difference) == words


def test_a_state_is_plain_values() -> None:
    assert fold(moves("live 1"), ALL) == State(1, (), (), {1: "production"})
