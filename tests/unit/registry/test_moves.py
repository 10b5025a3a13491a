from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from flatfix.errors import UserError
from flatfix.registry.journal import GateResult, Journal
from flatfix.registry.moves import Choice, Choose, Outcome, rollback, to_production, to_staging
from flatfix.registry.versions import Version, aliases
from flatfix.registry.view import Registry
from tests.helpers.candidates import candidates, some_runs
from tests.helpers.mlflow_db import fresh_database

PASSED = GateResult("not_worse", True, "+0.02")
REFUSED = GateResult("not_worse", False, "-0.02")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_database(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def runs(uri: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return some_runs(uri, tmp_path_factory.mktemp("runs"), 4)


@pytest.fixture
def registry(uri: str, runs: list[str], request: pytest.FixtureRequest) -> Registry:
    """Four candidates."""
    name = re.sub(r"\W+", " ", request.node.name).strip()
    return candidates(uri, runs, name)


class Interrupted(BaseException):
    """Stands for whatever ends a process."""


class DyingClient(MlflowClient):
    """Takes so many writes to aliases and tags, and dies at the next."""

    def __init__(self, uri: str, num_writes: int) -> None:
        super().__init__(uri)
        self._num_left = num_writes

    def set_registered_model_alias(self, *arguments: Any) -> None:
        self._live_or_die()
        super().set_registered_model_alias(*arguments)

    def delete_registered_model_alias(self, *arguments: Any) -> None:
        self._live_or_die()
        super().delete_registered_model_alias(*arguments)

    def set_model_version_tag(self, *arguments: Any) -> None:
        self._live_or_die()
        super().set_model_version_tag(*arguments)

    def _live_or_die(self) -> None:
        if self._num_left == 0:
            raise Interrupted
        self._num_left -= 1


class ForbiddenClient(MlflowClient):
    """Belongs to somebody who may log runs and set no alias."""

    def set_registered_model_alias(self, *arguments: Any) -> None:
        raise MlflowException("forbidden", PERMISSION_DENIED)


def the(number: int) -> Choose:
    return lambda view: Choice(view.version(number), "f1", 0.9)


def judge(*results: GateResult) -> Any:
    return lambda challenger, incumbent: results


def go_live(registry: Registry, *numbers: int) -> None:
    for number in numbers:
        to_staging(registry, the(number))
        assert to_production(registry, the(number), judge(PASSED)).move


def stages(registry: Registry) -> list[str]:
    return [version.stage for version in registry.look().versions]


def test_a_candidate_goes_to_staging_and_the_history_tells_how(registry: Registry) -> None:
    outcome = to_staging(registry, the(2), why="the best so far")
    (move,) = registry.look().moves
    assert outcome.move == move
    assert (move.number, move.action, move.version, move.from_stage, move.to_stage) == (
        1,
        "promote",
        2,
        "candidate",
        "staging",
    )
    assert (move.metric, move.value, move.why, move.replaced, move.forced) == (
        "f1",
        0.9,
        "the best so far",
        None,
        False,
    )
    assert move.who.startswith(f"{getpass.getuser()}@")
    assert aliases(registry.client, registry.name) == {"staging": 2}
    assert stages(registry) == ["candidate", "staging", "candidate", "candidate"]


def test_several_may_be_in_staging_and_the_alias_names_the_latest(registry: Registry) -> None:
    for number in (3, 1):
        to_staging(registry, the(number))
    assert aliases(registry.client, registry.name) == {"staging": 1}
    assert [version.number for version in registry.look().in_stage("staging")] == [1, 3]
    assert to_staging(registry, the(3)).move  # again, and it is the latest
    assert aliases(registry.client, registry.name) == {"staging": 3}
    again = to_staging(registry, the(3))
    assert (again.move, again.note) == (None, "version 3 is the latest in staging already")
    assert len(registry.look().moves) == 3


def test_a_version_that_passes_goes_live_and_the_one_before_is_archived(registry: Registry) -> None:
    go_live(registry, 1)
    to_staging(registry, the(2))
    seen: list[tuple[int, int | None]] = []

    def note(challenger: Version, incumbent: Version | None) -> Sequence[GateResult]:
        seen.append((challenger.number, incumbent and incumbent.number))
        return [PASSED]

    outcome = to_production(registry, the(2), note, why="better")
    assert seen == [(2, 1)]
    assert outcome.move and (outcome.move.replaced, outcome.move.gates) == (1, (PASSED,))
    assert aliases(registry.client, registry.name) == {"production": 2, "previous": 1}
    assert stages(registry)[:2] == ["archived", "production"]
    view = registry.look()
    assert view.production and view.production.number == 2
    assert view.went_live == outcome.move


def test_a_version_that_a_gate_refuses_stays_where_it_is(registry: Registry) -> None:
    go_live(registry, 1)
    to_staging(registry, the(2))
    outcome = to_production(registry, the(2), judge(PASSED, REFUSED))
    assert outcome.is_refused and outcome.gates == (PASSED, REFUSED)
    assert outcome.note == "version 2 did not pass every gate"
    assert aliases(registry.client, registry.name) == {"production": 1, "staging": 2}
    assert len(registry.look().moves) == 3


def test_gates_that_are_off_refuse_nothing(registry: Registry) -> None:
    to_staging(registry, the(1))
    assert to_production(registry, the(1), judge(GateResult("better", None, "off"))).move


def test_the_way_to_production_goes_through_staging_unless_forced(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"version=2: it is candidate, .* promote\.py version=2; or add force=true"):
        to_production(registry, the(2), judge(PASSED))
    assert registry.look().moves == ()
    outcome = to_production(registry, the(2), judge(REFUSED), force=True, why="the line stands still")
    assert outcome.move and outcome.move.forced and outcome.move.gates == ()
    assert (outcome.move.from_stage, outcome.move.why) == ("candidate", "the line stands still")
    assert aliases(registry.client, registry.name) == {"production": 2}


def test_what_is_live_is_not_moved(registry: Registry) -> None:
    go_live(registry, 1)
    outcome = to_production(registry, the(1), judge(REFUSED))
    assert (outcome.move, outcome.note, outcome.is_refused) == (None, "version 1 is in production already", False)
    with pytest.raises(UserError, match="version=1: it is in production, and does not go back to staging"):
        to_staging(registry, the(1))
    assert len(registry.look().moves) == 2


def test_a_dry_run_says_the_move_and_writes_nothing(registry: Registry) -> None:
    go_live(registry, 1)
    to_staging(registry, the(2))
    before = registry.look(), aliases(registry.client, registry.name)
    for outcome in (
        to_staging(registry, the(3), dry_run=True),
        to_production(registry, the(2), judge(PASSED), dry_run=True),
    ):
        assert outcome.move and outcome.move.number == 4
    with pytest.raises(UserError, match="action=rollback"):
        rollback(registry, dry_run=True)
    assert (registry.look(), aliases(registry.client, registry.name)) == before


def test_a_rollback_restores_what_was_live_before(registry: Registry) -> None:
    go_live(registry, 1, 2, 3)
    outcome = rollback(registry, why="it missed cracks")
    assert outcome.version.number == 2
    assert outcome.move and (outcome.move.action, outcome.move.replaced, outcome.move.why) == (
        "rollback",
        3,
        "it missed cracks",
    )
    assert aliases(registry.client, registry.name) == {"production": 2, "previous": 1}
    assert stages(registry) == ["archived", "production", "archived", "candidate"]
    rollback(registry)
    assert aliases(registry.client, registry.name) == {"production": 1}
    with pytest.raises(UserError, match="action=rollback: no version was in production before"):
        rollback(registry)


def test_a_rollback_goes_further_back_when_told_to(registry: Registry) -> None:
    go_live(registry, 1, 2, 3)
    assert rollback(registry, 3).note == "version 3 is in production by now"
    with pytest.raises(UserError, match=r"to=4: a rollback returns to .* before this one: 2, 1\. .*version=4"):
        rollback(registry, 4)
    rollback(registry, 1)
    assert aliases(registry.client, registry.name) == {"production": 1}


def test_what_was_rolled_back_may_come_again_through_staging(registry: Registry) -> None:
    go_live(registry, 1, 2)
    rollback(registry)
    go_live(registry, 2)
    assert aliases(registry.client, registry.name) == {"production": 2, "previous": 1}


def test_a_reason_that_mlflow_would_cut_is_refused(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"reason: 1,001 characters, of at most 1,000"):
        to_staging(registry, the(1), why="x" * 1001)


def test_a_move_that_others_overtook_is_decided_again(registry: Registry) -> None:
    go_live(registry, 1)
    for number in (2, 3):
        to_staging(registry, the(number))
    seen: list[int | None] = []

    def overtaken(challenger: Version, incumbent: Version | None) -> Sequence[GateResult]:
        seen.append(incumbent and incumbent.number)
        if len(seen) == 1:
            assert to_production(registry, the(3), judge(PASSED)).move
        return [PASSED]

    outcome = to_production(registry, the(2), overtaken)
    assert seen == [1, 3]
    assert outcome.move and outcome.move.replaced == 3
    assert aliases(registry.client, registry.name) == {"production": 2, "previous": 3}


def test_a_version_is_not_judged_again_when_others_moved_something_else(registry: Registry) -> None:
    to_staging(registry, the(2))
    num_judged = 0

    def overtaken(challenger: Version, incumbent: Version | None) -> Sequence[GateResult]:
        nonlocal num_judged
        num_judged += 1
        to_staging(registry, the(3))
        return [PASSED]

    assert to_production(registry, the(2), overtaken).move
    assert num_judged == 1


@pytest.mark.parametrize("num_writes", range(6))
def test_what_a_crash_left_is_repaired_and_said(registry: Registry, num_writes: int) -> None:
    go_live(registry, 1, 2)
    to_staging(registry, the(3))
    dying = Registry.open(DyingClient(registry.client.tracking_uri, num_writes), registry.name)
    if num_writes < 5:  # three aliases and two tags
        with pytest.raises(Interrupted):
            to_production(dying, the(3), judge(PASSED))
    else:
        to_production(dying, the(3), judge(PASSED))
    view, repaired = registry.settle()
    assert [str(each) for each in repaired] == [
        "@production: 2 → 3",
        "@staging: 3 → none",
        "@previous: 1 → 2",
        "stage of version 2: production → archived",
        "stage of version 3: staging → production",
    ][num_writes:]
    assert aliases(registry.client, registry.name) == {"production": 3, "previous": 2}
    assert [version.stage for version in view.versions] == ["archived", "archived", "production", "candidate"]
    assert len(view.moves) == 6
    assert registry.settle() == (view, [])


def test_what_somebody_changed_by_hand_is_put_right(registry: Registry) -> None:
    go_live(registry, 1)
    registry.client.set_registered_model_alias(registry.name, "production", "4")
    registry.client.set_registered_model_alias(registry.name, "canary", "4")
    registry.client.set_model_version_tag(registry.name, "4", "stage", "production")
    _, repaired = registry.settle()
    assert [str(each) for each in repaired] == ["@production: 4 → 1", "stage of version 4: production → candidate"]
    assert aliases(registry.client, registry.name) == {"production": 1, "canary": 4}


def test_a_version_whose_stage_somebody_removed_stays_live(registry: Registry) -> None:
    go_live(registry, 1)
    registry.client.delete_model_version_tag(registry.name, "1", "stage")
    view, repaired = registry.settle()
    assert [str(each) for each in repaired] == ["stage of version 1: none → production"]
    assert (view.state.production, aliases(registry.client, registry.name)) == (1, {"production": 1})


def test_a_move_whose_alias_may_not_be_written_is_told_and_completed_by_the_next(registry: Registry) -> None:
    go_live(registry, 1)
    to_staging(registry, the(2))
    reader = Registry.open(ForbiddenClient(registry.client.tracking_uri), registry.name)
    with pytest.raises(UserError, match="move 4 of .* is made, but not all aliases and tags say so yet, .*forbidden"):
        to_production(reader, the(2), judge(PASSED))
    assert aliases(registry.client, registry.name)["production"] == 1
    assert "@production: 1 → 2" in map(str, registry.settle()[1])


def test_when_the_live_version_was_deleted_a_rollback_still_goes_back(registry: Registry) -> None:
    go_live(registry, 1, 2)
    registry.client.delete_model_version(registry.name, "2")
    view, repaired = registry.settle()
    assert (view.production, repaired) == (None, [])
    assert rollback(registry).version.number == 1
    assert aliases(registry.client, registry.name) == {"production": 1}


def test_a_model_without_a_history_is_not_opened(registry: Registry) -> None:
    registry.client.create_registered_model("of another maker")
    with pytest.raises(UserError, match="Flatfix did not make it"):
        Registry.open(registry.client, "of another maker")


def test_a_rollback_of_what_somebody_else_rolled_back_meanwhile_goes_back_once(registry: Registry) -> None:
    go_live(registry, 1, 2, 3)

    class Overtaken(Journal):
        def append(self, move: Any) -> None:
            if len(registry.look().moves) == 6:
                rollback(registry)
            super().append(move)

    journal = Overtaken(registry.client, registry.journal.run_id)
    outcome: Outcome = rollback(Registry(registry.client, registry.name, journal))
    assert (outcome.move, outcome.note) == (None, "version 2 is in production by now")
    assert aliases(registry.client, registry.name) == {"production": 2, "previous": 1}
