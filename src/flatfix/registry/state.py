"""What the moves of a registered model come to: which version is live, and which was before it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from flatfix.registry.journal import Move
from flatfix.registry.versions import CANDIDATE

STAGING, PRODUCTION, PREVIOUS, ARCHIVED = "staging", "production", "previous", "archived"


@dataclass(frozen=True, slots=True)
class State:
    """Where the versions are, after the moves so far.

    Attributes:
        production: the version that is live.
        previous: the versions that a rollback goes back through, the next one last.
        staging: versions in staging, in the order in which they went there.
        stages: of every version that a move names.
    """

    production: int | None
    previous: tuple[int, ...]
    staging: tuple[int, ...]
    stages: Mapping[int, str]

    def stage(self, version: int) -> str:
        """Return the stage of a version: candidate, when no move names it."""
        return self.stages.get(version, CANDIDATE)

    @property
    def aliases(self) -> dict[str, int | None]:
        """What the aliases that Flatfix keeps point at; production, which readers follow, first."""
        return {
            PRODUCTION: self.production,
            STAGING: self.staging[-1] if self.staging else None,
            PREVIOUS: self.previous[-1] if self.previous else None,
        }


def fold(moves: Iterable[Move], existing: Collection[int]) -> State:
    """Return what moves come to, oldest first.

    A version that goes live puts the one before it on `previous`. A rollback takes the version that it returns to from
    there, and all above it: what was rolled back is archived, and no further rollback returns to it. A version that
    somebody has deleted is nowhere.

    Args:
        moves: all of them.
        existing: the numbers of the versions there are.
    """
    production: int | None = None
    previous: list[int] = []
    staging: list[int] = []
    stages: dict[int, str] = {}
    for move in moves:
        version = move.version
        if version in staging:
            staging.remove(version)
        stages[version] = move.to_stage
        if move.to_stage == STAGING:
            staging.append(version)
            continue
        if move.action == "rollback":
            previous = previous[: previous.index(version)]
        else:
            previous = [other for other in (*previous, production) if other not in (None, version)]
        if production not in (None, version):
            stages[production] = ARCHIVED
        production = version
    return State(
        production=production if production in existing else None,
        previous=tuple(version for version in previous if version in existing),
        staging=tuple(version for version in staging if version in existing),
        stages={version: stage for version, stage in stages.items() if version in existing},
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """An alias, or the tag `stage` of a version, that does not say what the moves come to.

    Attributes:
        kind: which of the two.
        key: the alias, or the number of the version.
        found: what it says: the version, or the stage.
        wanted: what it should say; None for an alias that should not be there.
    """

    kind: Literal["alias", "stage"]
    key: str
    found: str | None
    wanted: str | None

    def __str__(self) -> str:
        """Return what is written where, in a few words."""
        what = f"@{self.key}" if self.kind == "alias" else f"stage of version {self.key}"
        return f"{what}: {self.found or 'none'} → {self.wanted or 'none'}"


def differences(state: State, aliases: Mapping[str, int], stages: Mapping[int, str]) -> list[Difference]:
    """Return where the aliases and tags differ from the state, in the order in which to write them.

    Args:
        state: what the moves come to.
        aliases: as MLflow holds them.
        stages: the tag `stage` of every version, as MLflow holds it.
    """
    found = []
    for alias, version in state.aliases.items():
        if aliases.get(alias) != version:
            found.append(Difference("alias", alias, _text(aliases.get(alias)), _text(version)))
    for number, stage in stages.items():
        if stage != state.stage(number):
            found.append(Difference("stage", str(number), stage, state.stage(number)))
    return found


def _text(version: int | None) -> str | None:
    return None if version is None else str(version)
