"""Moves between stages, each decided in sight of all moves before it.

A move is decided on what the journal held, and written as the next in it. Where somebody else was faster, what it was
decided on is out of date: it is decided again.
"""

from __future__ import annotations

import getpass
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flatfix.errors import UserError
from flatfix.registry.journal import MAX_REASON_CHARS, GateResult, Move, MovedMeanwhile
from flatfix.registry.state import PRODUCTION, STAGING
from flatfix.registry.versions import Version
from flatfix.registry.view import Registry, View
from flatfix.tracking.connection import told_as_user_error

MAX_ATTEMPTS = 100  # each that fails is a move that somebody else has made
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class Choice:
    """Hold the version that is to move, and the validation metric that chose it, if one did."""

    version: Version
    metric: str | None = None
    value: float | None = None


Choose = Callable[[View], Choice]
Judge = Callable[[Version, Version | None], Sequence[GateResult]]  # the challenger, and what is live


@dataclass(frozen=True)
class Outcome:
    """Say what came of a move that was asked for.

    Attributes:
        version: that was to move.
        move: what was written to the journal, and in a dry run what would be; None where nothing moved.
        gates: what they said.
        note: why nothing moved.
    """

    version: Version
    move: Move | None = None
    gates: tuple[GateResult, ...] = ()
    note: str | None = None

    @property
    def is_refused(self) -> bool:
        """Whether a gate kept it from moving."""
        return self.move is None and any(gate.is_passed is False for gate in self.gates)


def to_staging(registry: Registry, choose: Choose, *, why: str | None = None, dry_run: bool = False) -> Outcome:
    """Put the version that `choose` picks into staging, as the latest there.

    Raises:
        UserError: the version is live.
    """

    def decide(view: View) -> Outcome:
        choice = choose(view)
        version, state = choice.version, view.state
        if version.number == state.production:
            raise UserError(f"version={version.number}: it is in production, and does not go back to staging.")
        if state.staging[-1:] == (version.number,):
            return Outcome(version, note=f"version {version.number} is the latest in staging already")
        return Outcome(version, _move(view, "promote", choice, STAGING, why=why))

    return _make(registry, decide, dry_run)


def to_production(
    registry: Registry,
    choose: Choose,
    judge: Judge,
    *,
    force: bool = False,
    why: str | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Make the version that `choose` picks live, if it is in staging and no gate refuses it.

    Args:
        registry: of the versions.
        choose: picks the challenger; asked again when somebody else has moved a version.
        judge: runs the gates; not asked twice about the same two versions.
        force: pass over staging and the gates.
        why: the reason, for the history.
        dry_run: write nothing.

    Raises:
        UserError: the version is not in staging.
    """
    judged: dict[tuple[int, int | None], tuple[GateResult, ...]] = {}

    def decide(view: View) -> Outcome:
        choice = choose(view)
        version, incumbent = choice.version, view.production
        if incumbent and version.number == incumbent.number:
            return Outcome(version, note=f"version {version.number} is in production already")
        stage = view.state.stage(version.number)
        if stage != STAGING and not force:
            raise UserError(
                f"version={version.number}: it is {stage}, and the way to production goes through staging. Move it "
                f'there first: promote.py version={version.number}; or add force=true reason="…".'
            )
        gates: tuple[GateResult, ...] = ()
        if not force:
            pair = (version.number, view.state.production)
            if pair not in judged:
                judged[pair] = tuple(judge(version, incumbent))
            gates = judged[pair]
        if any(gate.is_passed is False for gate in gates):
            return Outcome(version, gates=gates, note=f"version {version.number} did not pass every gate")
        return Outcome(version, _move(view, "promote", choice, PRODUCTION, why=why, forced=force, gates=gates), gates)

    return _make(registry, decide, dry_run)


def rollback(registry: Registry, to: int | None = None, *, why: str | None = None, dry_run: bool = False) -> Outcome:
    """Make the version live that was live before, or an earlier one; no further rollback returns to what is live now.

    Of several who roll back the same version at once, one does.

    Args:
        registry: of the versions.
        to: number of a version that was live before; None for the last one.
        why: the reason, for the history.
        dry_run: write nothing.

    Raises:
        UserError: no version, or not this one, was live before.
    """
    seen: list[int | None] = []

    def decide(view: View) -> Outcome:
        production, previous = view.state.production, view.state.previous
        seen.append(production)
        if production is not None and (production == to or production != seen[0]):
            return Outcome(view.version(production), note=f"version {production} is in production by now")
        if not previous:
            raise UserError(
                "action=rollback: no version was in production before this one. "
                "Promote another one instead: promote.py metric=F1 stage=production"
            )
        number = previous[-1] if to is None else to
        if number not in previous:
            held = ", ".join(map(str, reversed(previous)))
            raise UserError(
                f"to={number}: a rollback returns to a version that was in production before this one: {held}. Any "
                f"other goes there through staging: promote.py version={number}"
            )
        version = view.version(number)
        return Outcome(version, _move(view, "rollback", Choice(version), PRODUCTION, why=why))

    return _make(registry, decide, dry_run)


def _make(registry: Registry, decide: Callable[[View], Outcome], dry_run: bool) -> Outcome:
    pause_s = FIRST_PAUSE_S
    for _ in range(MAX_ATTEMPTS):
        outcome = decide(registry.look())
        if outcome.move is None or dry_run:
            return outcome
        try:
            with told_as_user_error(registry.client.tracking_uri):
                registry.journal.append(outcome.move)
        except MovedMeanwhile:
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            continue
        try:
            registry.settle()
        except UserError as error:
            raise UserError(
                f"move {outcome.move.number} of {registry.name} is made, but not all aliases and tags say so yet, "
                f"which the next promote.py sees to: {error}"
            ) from error
        return outcome
    raise RuntimeError(f"{registry.name}: somebody else was faster {MAX_ATTEMPTS} times")


def _move(
    view: View,
    action: str,
    choice: Choice,
    stage: str,
    *,
    why: str | None,
    forced: bool = False,
    gates: tuple[GateResult, ...] = (),
) -> Move:
    if why and len(why) > MAX_REASON_CHARS:
        raise UserError(f"reason: {len(why):,} characters, of at most {MAX_REASON_CHARS:,}. Shorten it.")
    return Move(
        number=len(view.moves) + 1,
        action=action,
        version=choice.version.number,
        from_stage=view.state.stage(choice.version.number),
        to_stage=stage,
        replaced=view.state.production if stage == PRODUCTION else None,
        metric=choice.metric,
        value=choice.value,
        who=_who(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        why=why,
        forced=forced,
        gates=gates,
    )


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = f"user {os.getuid()}"
    return f"{user}@{platform.node()}"
